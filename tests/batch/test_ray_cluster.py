from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from runtime.batch import ray_cluster
from runtime.batch.part_captioner import CaptionerSettings
from runtime.batch.plan import PlannedImage, PlannedPart
from runtime.batch.ray_cluster import PartActor, RayExecutor
from runtime.batch.result_files import FORMATS
from runtime.bundle import Bundle
from runtime.cli.main import main
from runtime.errors import BackendError
from runtime.system.version import __version__
from tests.conftest import ROOT, SAMPLE

FORM = FORMATS[".jsonl"]
VARIABLES = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_USAGE_STATS_ENABLED": "0", "PYTHONPATH": str(ROOT)}
"""The first lets the machines of a cluster be on the loopback interface."""


@pytest.fixture
def command(demo_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The command without the file of results, for sixteen images and one that is none, in parts of two."""
    monkeypatch.chdir(tmp_path)
    Path("images").mkdir()
    Path("images/00.jpg").write_bytes(b"none")
    with Image.open(SAMPLE / "scene.jpg") as scene:
        for number in range(1, 17):
            scene.rotate(20 * number).resize((96, 96)).save(f"images/{number:02d}.jpg")
    Path("regions.json").write_text(json.dumps([{"kind": "whole_image"}, [10, 10, 60, 80]]))
    return ["batch", "images", "--bundle", str(demo_bundle), "--regions", "regions.json", "--part-images", "2"]


@pytest.mark.slow
def test_a_cluster_that_loses_a_machine_gives_the_rows_of_one_process(command: list[str]) -> None:
    assert main([*command, "--out", "here.jsonl"]) == 0
    arguments = [*command, "--out", "cluster.jsonl", "--actor-cpus", "1"]
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("ray_cluster_run.py")), *arguments],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
        env={**os.environ, **VARIABLES},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "0 2", done.stderr
    assert rows("cluster.jsonl") == rows("here.jsonl")


@pytest.mark.slow
def test_a_cluster_of_this_machine_ends_with_the_run(command: list[str]) -> None:
    assert main([*command, "--out", "here.jsonl"]) == 0
    done = subprocess.run(
        [sys.executable, "-m", "patchcaption", *command, "--out", "local.jsonl", "--ray", "local"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "local.jsonl: 33 rows of 17 images\n"
    assert Path("local.jsonl").read_bytes() == Path("here.jsonl").read_bytes()


def test_rays_own_reports_of_usage_are_off(monkeypatch: pytest.MonkeyPatch) -> None:
    code = (
        "from runtime.batch.ray_cluster import RayExecutor\n"
        "from runtime.errors import BackendError\n"
        "try: next(RayExecutor('nonsense')([], None, None))\n"
        "except BackendError as error: print(error)\n"
        "from ray._common.usage import usage_lib\n"
        "print(usage_lib.usage_stats_enabled())"
    )
    monkeypatch.delenv("RAY_USAGE_STATS_ENABLED", raising=False)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.splitlines() == ["--ray nonsense: cannot be reached: Invalid address format: nonsense", "False"]


def test_where_nothing_answers_is_said_at_once(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{unused.getsockname()[1]}"
        assert main([*command, "--out", "out.jsonl", "--ray", address]) == 1
    error = capsys.readouterr().err
    assert error == f"patchcaption: error: --ray {address}: cannot be reached: [Errno 111] Connection refused\n"


def actor(bundle: Path, version: str = __version__, example: str = "regions.json", sha256: str = "") -> dict[str, Any]:
    """Return the answer of an actor to a part without images."""
    settings = CaptionerSettings(str(bundle), sha256 or Bundle(bundle).manifest_sha256())
    begin = ray_cluster.AttemptCounter().begin
    return PartActor(settings, FORM, version, example, begin)(ray_cluster._item(PlannedPart(3, ())))


@pytest.mark.usefixtures("command")
def test_a_machine_that_would_do_something_else_says_so(demo_bundle: Path) -> None:
    assert actor(demo_bundle) == {"number": 3, "rows": b"", "is_done": True, "problem": ""}
    host = socket.gethostname()
    assert actor(demo_bundle, version="0.0.1")["problem"] == (
        f"{host}: expected patchcaption 0.0.1, which the run was started with, got {__version__}"
    )
    assert "lost.jpg: no such file here; images have to be" in actor(demo_bundle, example="lost.jpg")["problem"]
    assert "no bundle there" in actor(Path("lost"), sha256="0" * 64)["problem"]
    assert (
        f"expected the bundle with the manifest of sha256 {'0' * 64}" in actor(demo_bundle, sha256="0" * 64)["problem"]
    )


class _Machines:
    """A cluster of machines with some resources."""

    def __init__(self, *resources: dict[str, float], dead: bool = False) -> None:
        self._resources, self._alive = resources, not dead

    def nodes(self) -> list[dict[str, Any]]:
        return [{"Resources": one, "Alive": self._alive} for one in self._resources]


@pytest.mark.parametrize(
    ("executor", "machines", "expected"),
    [
        (RayExecutor("auto"), [{"CPU": 2.0}, {"CPU": 2.0}, {}], (2, 2)),
        (RayExecutor("auto"), [{"CPU": 64.0}, {"CPU": 32.0}], (4, 24)),
        (RayExecutor("auto", actor_cpus=8), [{"CPU": 64.0}, {"CPU": 7.0}], (8, 8)),
        (RayExecutor("auto", actor_gpus=1), [{"CPU": 64.0, "GPU": 8.0}, {"CPU": 64.0}], (4, 8)),
        (RayExecutor("auto", actor_gpus=0.5), [{"CPU": 4.0, "GPU": 1.0}], (4, 1)),
    ],
)
def test_as_many_actors_as_the_machines_have_room_for(
    executor: RayExecutor, machines: list[dict[str, float]], expected: tuple[int, int]
) -> None:
    assert executor._actors(_Machines(*machines)) == expected


@pytest.mark.parametrize("machines", [_Machines({"CPU": 2.0}), _Machines({"CPU": 8.0}, dead=True), _Machines()])
def test_a_cluster_without_room_is_one_line(machines: _Machines) -> None:
    with pytest.raises(BackendError, match="--ray auto: no machine has the 4 cores and 0 GPUs that an actor takes"):
        RayExecutor("auto", actor_cpus=4)._actors(machines)


def test_images_of_a_part_come_through(demo_bundle: Path, command: list[str]) -> None:
    assert command
    settings = CaptionerSettings(str(demo_bundle), Bundle(demo_bundle).manifest_sha256())
    part = PlannedPart(5, (PlannedImage("images/00.jpg", ([],)),))
    answer = PartActor(settings, FORM, __version__, "images/00.jpg", lambda _: 1)(ray_cluster._item(part))
    assert answer["number"] == 5
    assert json.loads(answer["rows"])["error"].startswith("images/00.jpg: ")


@pytest.mark.usefixtures("command")
def test_a_part_that_ends_all_processes_is_given_up(demo_bundle: Path) -> None:
    settings = CaptionerSettings(str(demo_bundle), Bundle(demo_bundle).manifest_sha256())
    answering = PartActor(settings, FORM, __version__, "regions.json", ray_cluster.AttemptCounter().begin)
    part = ray_cluster._item(PlannedPart(5, ()))
    assert [answering(part)["is_done"] for _ in range(6)] == [True] * 5 + [False]
    assert answering(ray_cluster._item(PlannedPart(6, ())))["is_done"]


def rows(file: str) -> list[Any]:
    return [json.loads(line) for line in Path(file).read_text().splitlines()]
