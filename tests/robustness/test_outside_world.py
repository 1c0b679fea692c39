"""Nothing leaves the machine: seen from outside the process, with the variables unset that mute libraries in CI."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import ROOT, SAMPLE
from tests.robustness.watched import Watched, watch

SCENE = str(SAMPLE / "scene.jpg")
BOX = "276,174,507,399"
CHECKPOINT = ROOT / "export" / "demo" / "checkpoint"
TEXT_TOWER = [
    *("--text-tower", str(CHECKPOINT / "text_tower"), "--tokenizer", str(CHECKPOINT / "tokenizer.json")),
    *("--talk2dino", str(CHECKPOINT / "talk2dino.pth")),
]
DEVICES = ("/dev/null", "/dev/tty", "/proc/self")
SEMAPHORES = "/dev/shm/sem."
"""Those of progress bars, which several processes could share."""
EMBEDDED = """
import sys
from patchcaption import Box, Captioner, WholeImage
folder, backend, image = sys.argv[1:]
with Captioner.load(folder, backend) as captioner, captioner.batching() as batching:
    captioner.encoder(2)(image)
    print(batching.caption(image, [Box(276, 174, 507, 399)], beams=3)[0].text)
    print(*[len(result.captions) for result in captioner.stream([image] * 2, [WholeImage()])])
"""
CLI = ("-m", "patchcaption")
COMMANDS = {
    "caption": [*CLI, "caption", SCENE, "--box", BOX, "--bundle", "{demo}", "--save", "out/scene.png"],
    "caption-openvino": [*CLI, "caption", SCENE, "--bundle", "{demo}", "--backend", "openvino"],
    "batch": [*CLI, "batch", "{frames}", "--bundle", "{demo}", "--out", "out/captions.parquet"],
    "video": [*CLI, "video", "{frames}", "--bundle", "{demo}", "--save", "out/v.mp4", "--jsonl", "out/j"],
    "video-openvino": [*CLI, "video", "{frames}", "--bundle", "{demo}", "--backend", "openvino"],
    "info": [*CLI, "info", "{demo}"],
    "verify": [*CLI, "verify", "{demo}"],
    "tune": [*CLI, "tune", "{demo}", "--seconds", "5"],
    "doctor": [*CLI, "doctor", "--bundle", "{demo}"],
    "embedded": ["-c", EMBEDDED, "{demo}", "cpu", SCENE],
    "embedded-openvino": ["-c", EMBEDDED, "{demo}", "openvino", SCENE],
    "build": ["export/build_engines.py", "demo", "--out", "out/demo"],
    "memory": ["export/build_memory_bank.py", "{captions}", *TEXT_TOWER, "--out", "out/memory.h5"],
    "lint": ["-m", "export.lint", "{demo}/decoder.onnx"],
}


def run(name: str, demo: Path, folder: Path) -> Watched:
    """Run one of the commands in a folder that has ``out`` for its outputs."""
    (folder / "out").mkdir(parents=True)
    (folder / "home").mkdir()
    frames = folder / "frames"
    frames.mkdir()
    for number in range(3):
        (frames / f"{number}.jpg").write_bytes((SAMPLE / "scene.jpg").read_bytes())
    captions = folder / "captions.txt"
    captions.write_text("a red circle\na blue square\n")
    places = {"{demo}": str(demo), "{frames}": str(frames), "{captions}": str(captions)}
    arguments = COMMANDS[name]
    for place, value in places.items():
        arguments = [argument.replace(place, value) for argument in arguments]
    if arguments[0].endswith(".py"):
        arguments = [str(ROOT / arguments[0]), *arguments[1:]]
    return watch(arguments, cwd=folder, home=folder / "home")


def unexpected(watched: Watched, folder: Path) -> set[Path]:
    """Return what was written outside the named outputs, the documented folders and the folder for temporary files."""
    home = folder / "home"
    folders = (folder / "out", folder / "tmp", home / ".cache/patchcaption", home / ".local/share/patchcaption")
    parents = {parent for one in folders for parent in one.parents if parent.is_relative_to(home)}
    return {
        path
        for path in watched.written - parents
        if not any(path.is_relative_to(one) for one in (*folders, *DEVICES)) and not str(path).startswith(SEMAPHORES)
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_connects_to_nothing_and_writes_only_what_it_says(
    demo_bundle: Path, tmp_path: Path, name: str
) -> None:
    folder = tmp_path / "work"
    watched = run(name, demo_bundle, folder)
    assert watched.exit_code == 0, watched.output
    assert watched.network == []
    assert unexpected(watched, folder) == set()
    assert [path for path in (folder / "tmp").rglob("*") if path.is_file()] == []


@pytest.mark.slow
@pytest.mark.parametrize(
    "code",
    [
        "import socket; socket.getaddrinfo('example.invalid', 80)",
        "import socket; socket.socket().connect_ex(('127.0.0.1', 9))",
        "open('/dev/shm/of-somebody', 'w')",
        "import os; os.mkdir('beside')",
        "import onnxruntime",
        "import openvino",
    ],
)
def test_the_watch_sees(tmp_path: Path, code: str) -> None:
    folder = tmp_path / "work"
    (folder / "home").mkdir(parents=True)
    try:
        watched = watch(["-c", f"try:\n  {code}\nexcept OSError: pass"], cwd=folder, home=folder / "home")
    finally:
        Path("/dev/shm/of-somebody").unlink(missing_ok=True)
    assert watched.network or unexpected(watched, folder)
