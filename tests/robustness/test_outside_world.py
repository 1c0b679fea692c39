"""Nothing leaves the machine: seen from outside the process, with the variables unset that mute libraries in CI."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path

import httpx
import pytest

from tests.conftest import ROOT, SAMPLE
from tests.export.small_parser import write_parser
from tests.hub.hub_server import serve_hub
from tests.robustness.watched import Watched, check, make_home, unexpected, watch, watch_forks
from tests.robustness.watched_forks import Job

SCENE = str(SAMPLE / "scene.jpg")
BOX = "276,174,507,399"
CHECKPOINT = ROOT / "export" / "demo" / "checkpoint"
TEXT_TOWER = [
    *("--text-tower", str(CHECKPOINT / "text_tower"), "--tokenizer", str(CHECKPOINT / "tokenizer.json")),
    *("--talk2dino", str(CHECKPOINT / "talk2dino.pth")),
]
OPENS_A_SOCKET = re.compile(r"\bsocket\(AF_INET6?, SOCK_STREAM")
LISTENS = re.compile(r"\bbind\(.*sin_port=htons\(0\), sin_addr=inet_addr\(\"127\.0\.0\.1\"\)")
EMBEDDED = """
import sys
from patchcaption import Box, Captioner, WholeImage
folder, backend, image = sys.argv[1:]
with Captioner.load(folder, backend) as captioner, captioner.batching() as batching:
    captioner.encoder(2)(image)
    print(batching.caption(image, [Box(276, 174, 507, 399)], beams=3)[0].text)
    print(*[len(result.captions) for result in captioner.stream([image] * 2, [WholeImage()])])
"""
PLANS = """
import sys
from patchcaption.__main__ import main
options = ["--backend", "tensorrt-rtx", "--optimization-level", "0", "--compute-capability", "8.9"]
sys.exit(main(["build-plans", sys.argv[1], "--out", "out/plans", *options]) or main(["trust", "out/plans"]))
"""
PUBLISHED = """
import sys
from patchcaption.__main__ import main
sys.exit(main(["push", sys.argv[1], "acme/demo"]) or main(["pull", "acme/demo"]) or main(["info", "acme/demo"]))
"""
CLI = ("-m", "patchcaption")
DECODER = [
    *("--text-tower", str(CHECKPOINT / "text_tower"), "--tower-tokenizer", str(CHECKPOINT / "tokenizer.json")),
    *("--talk2dino", str(CHECKPOINT / "talk2dino.pth"), "--tokenizer", str(CHECKPOINT / "tokenizer.json")),
    *("--width", "16", "--layers", "1", "--held-out", "1"),
]
DESCRIBING = {
    "caption": [*CLI, "caption", SCENE, "--box", BOX, "--bundle", "{demo}", "--save", "out/scene.png"],
    "caption-openvino": [*CLI, "caption", SCENE, "--bundle", "{demo}", "--backend", "openvino"],
    "batch": [*CLI, "batch", "{frames}", "--bundle", "{demo}", "--out", "out/captions.parquet"],
    "video": [*CLI, "video", "{frames}", "--bundle", "{demo}", "--save", "out/v.mp4", "--jsonl", "out/j"],
    "video-openvino": [*CLI, "video", "{frames}", "--bundle", "{demo}", "--backend", "openvino"],
    "embedded": ["-c", EMBEDDED, "{demo}", "cpu", SCENE],
    "embedded-openvino": ["-c", EMBEDDED, "{demo}", "openvino", SCENE],
    "info": [*CLI, "info", "{demo}"],
    "verify": [*CLI, "verify", "{demo}"],
    "tune": [*CLI, "tune", "{demo}", "--seconds", "5"],
    "doctor": [*CLI, "doctor", "--bundle", "{demo}"],
}
MAKING = {
    "plans": ["-c", PLANS, "{demo}"],
    "triton-repository": [*CLI, "triton-repository", "{demo}", "--out", "out/models"],
    "train": [*CLI, "train", "{captions}", *DECODER, "--steps", "2", "--batch-size", "2", "--out", "out/decoder.pt"],
    "parse-captions": [*CLI, "parse-captions", "{captions}", "--parser", "{parser}", "--out", "out/graphs.jsonl"],
    "memory": [str(ROOT / "export/build_memory_bank.py"), "{captions}", *TEXT_TOWER, "--out", "out/memory.h5"],
    "lint": ["-m", "export.lint", "{demo}/decoder.onnx"],
}
"""Also `demo`, which is build and caption: test_wheel.py watches it."""
MODULES = ("runtime.captioner", "patchcaption._commands", "export.build_plans", "export.build_memory_bank")
"""What most commands import."""
SEEN = {
    "name": "import socket; socket.getaddrinfo('example.invalid', 80)",
    "connection": "import socket; socket.socket().connect_ex(('127.0.0.1', 9))",
    "shared memory": "open('/dev/shm/of-somebody', 'w')",
    "folder": "import os; os.mkdir('beside')",
    "onnxruntime": "import onnxruntime",
    "openvino": "import openvino",
}


def make_job(name: str, arguments: Sequence[str], demo: Path, folder: Path) -> Job:
    """Return a command in a folder that has ``out`` for its outputs."""
    make_home(folder)
    frames = folder / "frames"
    frames.mkdir()
    for number in range(3):
        (frames / f"{number}.jpg").write_bytes((SAMPLE / "scene.jpg").read_bytes())
    captions = folder / "captions.txt"
    captions.write_text("a red circle\na blue square\na large green triangle\n")
    places = {
        "{demo}": str(demo),
        "{frames}": str(frames),
        "{captions}": str(captions),
        "{parser}": str(folder / "parser"),
    }
    if name == "parse-captions":
        write_parser(folder / "parser")
    for place, value in places.items():
        arguments = [argument.replace(place, value) for argument in arguments]
    return Job(name=name, arguments=list(arguments), cwd=str(folder))


def watch_each(jobs: Sequence[Job], folder: Path, modules: Sequence[str] = ()) -> dict[str, Watched]:
    """Run commands, each in a fork; of the process that they share, require what is required of them."""
    make_home(folder)
    start, done = watch_forks(jobs, folder, folder / "home", modules)
    check(start, folder)
    return done


@pytest.mark.slow
@pytest.mark.parametrize("commands", [DESCRIBING, MAKING], ids=["describing", "making"])
def test_commands_connect_to_nothing_and_write_only_what_they_say(
    demo_bundle: Path, tmp_path: Path, commands: Mapping[str, Sequence[str]]
) -> None:
    jobs = [make_job(name, arguments, demo_bundle, tmp_path / name) for name, arguments in commands.items()]
    for name, watched in watch_each(jobs, tmp_path / "start", MODULES).items():
        print(f"{name}:")
        check(watched, tmp_path / name)


@pytest.mark.slow
def test_a_service_answers_on_loopback_and_asks_nobody(demo_bundle: Path, tmp_path: Path) -> None:
    folder = tmp_path / "work"
    make_home(folder)
    answers = list[httpx.Response]()

    def ask(said: str, pid: int) -> None:
        address = said.rsplit(" ", 1)[1].strip()
        image = (SAMPLE / "scene.jpg").read_bytes()
        answers.append(httpx.post(f"{address}/v1/captions", content=image, headers={"Content-Type": "image/jpeg"}))
        answers.append(httpx.get(address))
        os.kill(pid, signal.SIGTERM)

    command = [*CLI, "serve", str(demo_bundle), "--port", "0"]
    watched = watch(command, cwd=folder, home=folder / "home", meanwhile=ask)
    assert [answer.status_code for answer in answers] == [200, 200], watched.output
    assert watched.exit_code == 0, watched.output
    assert [line for line in watched.network if not OPENS_A_SOCKET.search(line) and not LISTENS.search(line)] == []
    assert unexpected(watched, folder) == set()


@pytest.mark.slow
def test_the_hub_is_the_only_machine_that_is_asked_for_what_is_named_there(demo_bundle: Path, tmp_path: Path) -> None:
    folder = tmp_path / "work"
    make_home(folder)
    with serve_hub() as hub:
        variables = {"HF_ENDPOINT": hub.url, "HF_TOKEN": hub.token, "HF_HUB_DISABLE_XET": "1"}
        watched = watch(["-c", PUBLISHED, str(demo_bundle)], folder, folder / "home", variables)
        assert watched.exit_code == 0, watched.output
        of_hub = f'sin_port=htons({hub.url.rsplit(":", 1)[1]}), sin_addr=inet_addr("127.0.0.1")'
    assert hub.files_sent()
    assert [line for line in watched.network if not OPENS_A_SOCKET.search(line) and of_hub not in line] == []
    assert unexpected(watched, folder) == set()


@pytest.mark.slow
def test_the_watch_sees(tmp_path: Path) -> None:
    codes = {name: f"try:\n  {code}\nexcept OSError: pass" for name, code in SEEN.items()} | {"nothing": "pass"}
    jobs = [make_job(name, ["-c", code], tmp_path, tmp_path / name) for name, code in codes.items()]
    try:
        done = watch_each(jobs, tmp_path / "start")
    finally:
        Path("/dev/shm/of-somebody").unlink(missing_ok=True)
    assert {name for name in done if not done[name].network and not unexpected(done[name], tmp_path / name)} == {
        "nothing"
    }
