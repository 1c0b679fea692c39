"""Several processes learn what one learns, started by torch's own launcher, and end together."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from export.checkpoint import CheckpointError
from export.training.processes import launched
from tests.conftest import ROOT
from tests.export.training.conftest import SIZE, TOKENIZER, TOWER, Train, write_captions
from tests.export.training.test_command import losses

OPTIONS = (*TOWER, *TOKENIZER, *SIZE, "--dropout", "0", "--epochs", "4", "--clip-norm", "1", "--held-out", "12")
ALLOWED = 1e-5
"""Sums of float32 numbers in another order; learning makes them grow a little."""
SCRIPT, MODULE = ["export/train_decoder.py"], ["-m", "patchcaption", "train"]


def launch(*command: object, count: int = 2) -> subprocess.CompletedProcess[str]:
    """Run a command in so many processes, which meet on this machine alone."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", count, "--master-addr", "127.0.0.1"]
    variables = {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [str(part) for part in (sys.executable, *launcher, "--master-port", port, *command)],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
        cwd=ROOT,
        env=os.environ | variables,
    )


def largest_difference(first: Path, second: Path) -> float:
    states = [torch.load(path, weights_only=True) for path in (first, second)]
    assert states[0].keys() == states[1].keys()
    return max(float((states[0][name] - states[1][name]).abs().max()) for name in states[0])


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of what two processes learned from the captions there, and what they printed."""
    folder = tmp_path_factory.mktemp("together")
    captions = write_captions(folder / "captions.txt", 60)
    done = launch(*SCRIPT, captions, *OPTIONS, "--out", folder / "together.pt")
    assert done.returncode == 0, done.stderr
    (folder / "printed.txt").write_text(done.stdout)
    return folder


def is_what_one_learns(together: Path, alone: Path, printed: str) -> None:
    """Compare what two processes left in a folder with what one did."""
    assert printed.count("together.pt: loss") == 1, "one process reports"
    assert losses(together.with_suffix(".csv")) == pytest.approx(losses(alone.with_suffix(".csv")), abs=ALLOWED)
    assert largest_difference(alone, together) < 1e-4
    assert not any(name.startswith("module.") for name in torch.load(together, weights_only=True))
    assert not list(together.parent.glob(".*"))


@pytest.mark.slow
def test_two_processes_learn_what_one_learns(train: Train, tmp_path: Path, together: Path) -> None:
    alone = tmp_path / "alone.pt"
    assert train("--dropout", 0, "--epochs", 4, "--clip-norm", 1, "--held-out", 12, out=alone) == 0
    is_what_one_learns(together / "together.pt", alone, (together / "printed.txt").read_text())


@pytest.mark.slow
def test_two_processes_of_the_package_learn_what_one_learns(train: Train, tmp_path: Path) -> None:
    alone, both, more = tmp_path / "alone.pt", tmp_path / "together.pt", ("--kind", "capdec", "--batch-size", "15")
    assert train("--dropout", 0, "--epochs", 4, "--clip-norm", 1, *more, "--held-out", 12, out=alone) == 0
    done = launch(*MODULE, tmp_path / "captions.txt", *OPTIONS, *more, "--out", both)
    assert done.returncode == 0, done.stderr
    is_what_one_learns(both, alone, done.stdout)


@pytest.mark.slow
def test_processes_that_are_all_killed_go_on(tmp_path: Path, together: Path) -> None:
    options = [together / "captions.txt", *OPTIONS, "--save-seconds", 0, "--out", tmp_path / "decoder.pt"]
    killed = tmp_path / "killed.py"
    killed.write_text(
        "import os, signal, sys\n"
        "from export import train_decoder\n"
        "from export.training.trainer import Trainer\n"
        "step = Trainer.step\n"
        "def stepped(trainer):\n"
        "    if trainer.next_step == 7:\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return step(trainer)\n"
        "Trainer.step = stepped\n"
        "train_decoder.main(sys.argv[1:])\n"
    )
    done = launch(killed, *options)
    assert done.returncode != 0
    assert f"Signal {int(signal.SIGKILL)}" in done.stderr
    assert (tmp_path / ".decoder.pt.part" / "state.pt").exists()
    assert not (tmp_path / "decoder.pt").exists()
    done = launch(*SCRIPT, *options)
    assert done.returncode == 0, done.stderr
    for suffix in (".pt", ".csv", ".h5"):
        assert (tmp_path / f"decoder{suffix}").read_bytes() == (together / f"together{suffix}").read_bytes()


@pytest.mark.slow
def test_what_ends_the_first_process_ends_all_without_a_traceback(tmp_path: Path) -> None:
    (tmp_path / "captions.txt").write_text("\n\n")
    done = launch(*SCRIPT, tmp_path / "captions.txt", *OPTIONS, "--out", tmp_path / "decoder.pt")
    assert done.returncode == 1
    assert f"error: {tmp_path}/captions.txt: expected at least one caption, got none" in done.stderr
    ours = done.stderr.split("torch/distributed/elastic")[0]  # what follows is the launcher's
    assert "Traceback" not in ours


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE: expected a number, as torchrun sets it, got 'two'"),
        ({"WORLD_SIZE": "2", "RANK": "0"}, "WORLD_SIZE is 2, but its processes do not meet: .*MASTER_ADDR.*"),
    ],
)
def test_a_launch_that_is_incomplete_is_one_line(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], message: str
) -> None:
    for name in ("MASTER_ADDR", "MASTER_PORT", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(CheckpointError, match=message), launched("cpu"):
        pass


def test_one_process_is_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "1")
    with launched("cpu") as processes:
        assert (processes.rank, processes.count, processes.device.type) == (0, 1, "cpu")
        assert processes.is_first
        assert processes.sum(torch.ones(2)).tolist() == [1, 1]
        processes.wait()
