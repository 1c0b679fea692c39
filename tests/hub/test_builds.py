"""A published checkpoint by its name: its bundle is built once, by another process, and kept."""

from __future__ import annotations

import os
import signal
import stat
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
import yaml
from transformers import GPT2Config, GPT2LMHeadModel

from export.models.dinov2 import Dinov2Backbone, Dinov2Config
from export.readers import DEMO_CONFIG
from runtime.errors import BundleError
from runtime.hub.building import build_bundle
from runtime.hub.client import HubListing
from tests.hub.hub_server import Hub, Tree
from tests.hub.machine import Machine
from tests.hub.test_downloads import Gate

NAME = "lab/checkpoint"
OPEN = f"from runtime.hub import open_bundle; print(open_bundle('{NAME}').manifest.build.checkpoint)"
WIDTH, TOKENS = 64, 170
CONFIG = {
    "decap_weights": "decoder.pt",
    "prefix_size": WIDTH,
    "support_memory_size": 10,
    "dino_model": "dinov2_vittiny14_reg",
    "dino_weights": "backbone.pth",
    "projection_type": "memory.h5",
    "tokenizer": "tokenizer.json",
    "resize_dim": 28,
    "crop_dim": 28,
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Tree:
    """The files of the smallest checkpoint, its weights random."""
    folder = tmp_path_factory.mktemp("checkpoint")
    torch.manual_seed(0)
    backbone = Dinov2Backbone(Dinov2Config(WIDTH, 1, 1, num_registers=4, image_size=28, attention_heads=1))
    torch.save(backbone.state_dict(), folder / "backbone.pth")
    gpt = GPT2LMHeadModel(GPT2Config(vocab_size=TOKENS, n_positions=40, n_embd=32, n_layer=1, n_head=1))
    state = {f"decoder.{name}": value for name, value in gpt.state_dict().items()}
    state |= {"clip_project.model.0.weight": torch.randn(32, WIDTH), "clip_project.model.0.bias": torch.zeros(32)}
    torch.save(state, folder / "decoder.pt")
    with h5py.File(folder / "memory.h5", "w") as file:
        file["captions-embeddings"] = np.random.default_rng(0).standard_normal((10, WIDTH)).astype(np.float32)
        file["captions-text"] = [f"caption {number}".encode() for number in range(10)]
    (folder / "tokenizer.json").write_bytes(DEMO_CONFIG.with_name("tokenizer.json").read_bytes())
    (folder / "config.yaml").write_text(yaml.safe_dump(CONFIG))
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def child_of(pid: int) -> int:
    """Return the only child of a process."""
    return int(Path(f"/proc/{pid}/task/{pid}/children").read_text())


@pytest.mark.slow
def test_a_checkpoint_is_built_once_whatever_is_killed(hub: Hub, machine: Machine, checkpoint: Tree) -> None:
    commit = hub.add(NAME, checkpoint).refs["main"]
    gate = Gate(hub, "decoder.pt")
    killed = machine.start(OPEN)
    assert gate.reached.wait(60)
    assert killed.process.pid is not None
    os.kill(child_of(killed.process.pid), signal.SIGKILL)
    done = killed.finish()
    assert done.code == 1
    assert "note: lab/checkpoint at" in done.err
    assert "its checkpoint was not built: the build was killed by signal 9; had it too little memory?" in done.err
    assert machine.run(OPEN, HF_HUB_OFFLINE="1").code == 1, "a part was taken for a bundle"
    gate.open()
    gate = Gate(hub, "decoder.pt")
    first = machine.start(OPEN)
    assert gate.reached.wait(60)
    second = machine.start(OPEN)
    second.wait_for("lab/checkpoint: another process is fetching it; waiting for that")
    first.kill()  # its build goes on, and keeps the lock
    gate.open()
    done = second.finish()
    assert (done.code, done.out) == (0, f"{NAME}@{commit}\n"), done
    assert [hub.files_sent().count(name) for name in ("decoder.pt", "backbone.pth")] == [2, 1]
    assert [path.name for path in machine.bundle(NAME).parent.glob(".*")] == []
    asked = len(hub.requests)
    assert machine.run(OPEN, HF_HUB_OFFLINE="1").out == done.out
    assert machine.run(["pull", NAME]).out == f"{machine.bundle(NAME)}\n"
    assert all("resolve" not in request for request in hub.requests[asked:])


def test_what_the_build_needs_is_said_in_one_line(hub: Hub, machine: Machine, checkpoint: Tree) -> None:
    hub.add(NAME, checkpoint)
    packages = machine.folder / "packages"
    packages.mkdir()
    (packages / "rich.py").write_text("raise ModuleNotFoundError(\"No module named 'rich'\", name='rich')")
    done = machine.run(["info", NAME], PYTHONPATH=f"{packages}:{os.environ.get('PYTHONPATH', '')}")
    note, error = done.err.splitlines()
    assert note.startswith("patchcaption: note: lab/checkpoint at ")
    assert "its checkpoint was not built: build: No module named 'rich': pip install 'patchcaption[export]'; " in error
    assert "by hand: patchcaption build lab/checkpoint@" in error


LISTING = HubListing("lab/checkpoint", "0" * 40, frozenset())


def build_by(script: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Build with a program in place of Python."""
    program = tmp_path / "python"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(stat.S_IRWXU)
    monkeypatch.setattr(sys, "executable", str(program))
    descriptor = os.open(tmp_path / "lock", os.O_CREAT | os.O_RDWR)
    try:
        build_bundle(LISTING, tmp_path / "target", descriptor)
    finally:
        os.close(descriptor)


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        (r"printf '1/7\r2/7\r\033[31merror: no such\n file\033[0m\n' >&2; exit 1", "no such file"),
        ("echo 'patchcaption: error: build: x' >&2; exit 1", "build: x"),
        ("echo Traceback >&2; exit 3", "the build ended with the exit code 3, and has said why above"),
        ("exit 0", "the build ended with the exit code 0"),
        ("kill -9 $$", "the build was killed by signal 9; had it too little memory?"),
    ],
)
def test_a_build_that_fails_says_why_once(
    script: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(BundleError, match=f"its checkpoint was not built: {reason}"):
        build_by(script, tmp_path, monkeypatch)
    said = capsys.readouterr().err
    assert "error: " not in said
    assert ("1/7\r2/7" in said, "Traceback" in said) == ("1/7" in script, "Traceback" in script)


def test_the_build_is_asked_for_in_its_own_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "relative:/absolute")
    said = tmp_path / "said"
    with pytest.raises(BundleError):
        build_by(
            f'pwd > {said}; echo "$PYTHONPATH $@" >> {said}; read x || echo no stdin >> {said}', tmp_path, monkeypatch
        )
    root = Path(__file__).parents[2]
    assert said.read_text().splitlines() == [
        str(tmp_path),
        f"{Path('relative').absolute()}:/absolute:{root} -m patchcaption build lab/checkpoint@{'0' * 40} --out "
        f"{tmp_path / 'target'}",
        "no stdin",
    ]


def test_an_interrupted_build_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    ended = tmp_path / "ended"
    monkeypatch.setattr("runtime.hub.building._pass_on", interrupt)
    with pytest.raises(KeyboardInterrupt):
        build_by(
            f"trap 'touch {ended}; exit' TERM; echo begun >&2; while :; do read x < /dev/null; done",
            tmp_path,
            monkeypatch,
        )
    assert ended.exists()
