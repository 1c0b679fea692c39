"""Runs a command that writes files, and ends it at random points. Run by test_killed_outputs.py.

Usage: killed_outputs.py COMMAND ENDINGS POINTS BUNDLE FOLDER, with commas between endings, each of which comes at so
many points. Fails where something older is lost, something written cannot be read, or something else was touched.
Prints how many of the runs left unfinished work.

A point is a call of a function in the main thread. Modules are imported once; each run is a fork that has
loaded nothing.
"""

from __future__ import annotations

import csv
import json
import os
import random
import resource
import signal
import sys
import threading
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import FrameType

import av
import torch
from PIL import Image

from runtime.cli.main import main as run_command
from tests.clips import write_sounding_clip
from tests.conftest import SAMPLE

FRAMES, FRAME_RATE = 12, 10
SIGNALS = {"kill": signal.SIGKILL, "term": signal.SIGTERM, "hup": signal.SIGHUP, "int": signal.SIGINT}
"""How a run ends; also "pipe", as the reader of stdout goes, and "full", as the disk takes no more."""
TEXTS = (".jsonl", ".csv", ".srt", ".vtt")
HEAD_BYTES = dict.fromkeys(TEXTS, 0) | {".mp4": 2000, ".mov": 2000, ".mkv": 2000, ".avi": 10_000}
"""What is killed before its first frame has no more."""

Prepare = Callable[[int, int], None]
"""Prepares a child process; it is given both ends of its stdout."""


def main() -> None:
    command, endings, points = sys.argv[1], sys.argv[2].split(","), int(sys.argv[3])
    bundle, folder = Path(sys.argv[4]), Path(sys.argv[5])
    torch.set_num_threads(1)
    write_sounding_clip(folder / "clip.mp4", frames=FRAMES)
    (folder / "thesis.txt").write_text("years of work")
    print(sum(end_often(command, ending, points, bundle, folder) for ending in endings))


def end_often(command: str, ending: str, points: int, bundle: Path, folder: Path) -> int:
    """End a command at so many points; return how many of the runs left unfinished work."""
    clear(folder)
    others = contents(folder)
    arguments, outputs = command_line(command, ending, bundle, folder)
    first_call, calls, old = rehearse(tuple(arguments), tuple(outputs))
    chance, unfinished = random.Random(f"{command} {ending}"), 0
    for number in range(points):
        clear(folder)
        before = old if number % 2 else {}
        for path, content in before.items():
            path.write_bytes(content)
            os.utime(path, (0, 0))
        if ending == "full":
            run(arguments, limit_file_size(chance.randrange(max(map(len, old.values())))))
        else:
            run(arguments, end_at(chance.randrange(chance.choice((1, first_call)), calls), ending))
        assert {path: path.read_bytes() for path in others} == others
        unfinished += check(folder, outputs, before, others, ending)
    return unfinished


@cache
def rehearse(arguments: tuple[str, ...], outputs: tuple[Path, ...]) -> tuple[int, int, dict[Path, bytes]]:
    """Run a command; return how many calls it makes, as `count_calls` does, and what it writes."""
    first_call, calls = count_calls(list(arguments))
    return first_call, calls, {path: path.read_bytes() for path in outputs}


def clear(folder: Path) -> None:
    for path in folder.iterdir():
        if path.name not in ("clip.mp4", "thesis.txt"):
            path.unlink()


def command_line(command: str, ending: str, bundle: Path, folder: Path) -> tuple[list[str], list[Path]]:
    """Return a command's arguments and the files that they name as outputs."""
    outputs = [folder / ("drawn.png" if command == "caption" else f"drawn.{command}")]
    arguments = ["caption", str(SAMPLE / "scene.jpg")]
    if command != "caption":
        arguments = ["video", str(folder / "clip.mp4"), "--reuse", "0"]
    if command != "caption" and ending != "pipe":  # else captions are printed
        for suffix in TEXTS:
            outputs.append(folder / f"captions{suffix}")
            arguments += [f"--{suffix[1:]}", str(outputs[-1])]
    return [*arguments, "--bundle", str(bundle), "--whole", "--box", "10,10,90,80", "--save", str(outputs[0])], outputs


def check(folder: Path, outputs: list[Path], before: dict[Path, bytes], others: dict[Path, bytes], ending: str) -> bool:
    """Return whether there is unfinished work; fail if anything is not as it should be."""
    left = set(folder.iterdir()) - others.keys() - set(outputs)
    for output in outputs:
        parts = {path for path in left if path.name.startswith(f"{output.stem}.part-") and path.suffix == output.suffix}
        left -= parts
        is_old = output in before and output.stat().st_mtime == 0
        if is_old:
            assert output.read_bytes() == before[output]
        elif output in before:
            assert frames_in(output) == FRAMES, f"{output} was replaced by a part"
        elif output.exists():
            assert frames_in(output) > 0, output
        assert len(parts) <= 1, parts
        for part in parts:
            assert is_old or ending == "kill", f"{part} has not taken its place"
            if ending != "kill" or part.stat().st_size > HEAD_BYTES[part.suffix]:
                assert frames_in(part) > 0, part
    assert not left, left
    if ending == "pipe":
        assert frames_in(outputs[0]) == FRAMES, "what was named is written all the same"
    return any(not output.exists() or frames_in(output) < FRAMES for output in outputs)


def frames_in(path: Path) -> int:
    """Return how many frames a file of any kind tells of; an image counts as a whole video."""
    if path.suffix == ".jsonl":
        text = path.read_text()
        assert text.endswith("\n")
        return len([json.loads(line) for line in text.splitlines()])
    if path.suffix == ".png":
        with Image.open(path) as image:
            image.load()
        return FRAMES
    if path.suffix == ".csv":
        with path.open(newline="") as table:
            rows = [row["frame"] for row in csv.DictReader(table, strict=True)]
        assert rows[::2] == rows[1::2], "two regions"
        return len(rows) // 2
    with av.open(str(path)) as container:
        if path.suffix in (".srt", ".vtt"):
            cues = [one for one in container.demux() if one.pts is not None]
            return round(FRAME_RATE * float(cues[-1].time_base * (cues[-1].pts + cues[-1].duration)))
        return len(list(container.decode(video=0)))


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.iterdir()}


def count_calls(arguments: list[str]) -> tuple[int, int]:
    """Run a command; return how many calls it makes until it makes its first part of a file, and in all."""
    read_end, write_end = os.pipe()

    def prepare(_: int, __: int) -> None:
        def note(count: int, name: str) -> None:
            if name in ("open_part", "finish_standard_streams"):
                os.write(write_end, f"{count}\n".encode())

        at_each_call(note)

    run(arguments, prepare)
    os.close(write_end)
    with os.fdopen(read_end) as pipe:
        counts = [int(line) for line in pipe]
    return counts[0], counts[-1]


def limit_file_size(limit_bytes: int) -> Prepare:
    return lambda *_: resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, limit_bytes))


def end_at(call: int, ending: str) -> Prepare:
    """Return what ends a process at its n-th call."""

    def prepare(read_end: int, _: int) -> None:
        def end(count: int, _: str) -> None:
            if count == call and ending == "pipe":
                os.close(read_end)
            elif count == call:
                os.kill(os.getpid(), SIGNALS[ending])

        at_each_call(end)

    return prepare


def at_each_call(act: Callable[[int, str], None]) -> None:
    """Give the number of each call in this thread, and the name of the function, to ``act``.

    Not of those by which locks are taken and given back: an exception between the two leaves them taken.
    """
    count = 0

    def profile(frame: FrameType, event: str, _: object) -> None:
        nonlocal count
        if event in ("call", "c_call") and frame.f_code.co_filename != threading.__file__:
            count += 1
            act(count, frame.f_code.co_name if event == "call" else "")

    sys.setprofile(profile)


def run(arguments: list[str], prepare: Prepare) -> None:
    """Run a command in a child process."""
    child = os.fork()
    if child == 0:
        try:
            read_end, write_end = os.pipe()
            os.dup2(write_end, 1)
            os.close(write_end)
            sys.stdout = os.fdopen(1, "w", closefd=False)  # the old one may take it for a file that can seek
            prepare(read_end, 1)
            run_command(arguments)
        finally:
            os._exit(0)
    os.waitpid(child, 0)


if __name__ == "__main__":
    main()
