"""Builds a bundle again and again and is killed at a different point each time. Run by test_killed_builds.py.

Usage: killed_build.py BUNDLE POINTS. The graphs are copies: exporting them is slow, and writes nothing of its own.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console

from export import bundle_builder
from export.command_line import show_progress
from export.readers import read_checkpoint
from runtime.bundle import Bundle, EngineRecord

EVENTS = frozenset(
    {"open", "os.rename", "os.mkdir", "os.rmdir", "os.remove", "os.chmod", "os.link", "ctypes.call_function"}
)


def main() -> None:
    target, points = Path(sys.argv[1]), int(sys.argv[2])
    torch.set_num_threads(1)
    store = Path(shutil.copytree(target, target.with_name("store")))
    manifest = Bundle(store).manifest
    for part in ("backbone", "reencoder", "decoder", "beam_decoder"):
        setattr(bundle_builder, f"export_{part}", _copied(store, getattr(manifest, part)))
    read = read_checkpoint("demo", None)
    bundle_builder.read_checkpoint = lambda *_: read
    total = _in_a_child(lambda: _build(target, 0))
    for point in range(1, points + 1):
        at = max(1, point * total // (points + 1))
        status = _in_a_child(lambda at=at: _build(target, at))
        assert status == -signal.SIGKILL, f"point {point}: {status}"
        Bundle(target)  # whole, old or new: every file is compared
    left = [path for path in target.parent.iterdir() if path.name.startswith(".")]
    assert len(left) <= 1, left  # of the last; each build removes what the ones before it left
    assert _in_a_child(lambda: _build(target, 0)) > 0
    Bundle(target)
    assert [path.name for path in target.parent.iterdir() if path.name.startswith(".")] == []
    print(total)


def _copied(store: Path, record: EngineRecord) -> Callable[..., EngineRecord]:
    def export(_: object, folder: Path, *__: object) -> EngineRecord:
        for name in (record.file, f"{record.file}.data"):
            if (store / name).exists():
                shutil.copyfile(store / name, folder / name)
        return record

    return export


def _build(target: Path, killed_at: int) -> int:
    """Return how many times it touched the file system; does not return if it is killed before."""
    count = 0

    def look(event: str, _: tuple[object, ...]) -> None:
        nonlocal count
        if event in EVENTS:
            count += 1
            if count == killed_at:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(look)
    with show_progress(Console(stderr=True), 7) as progress:
        bundle_builder.build("demo", target, progress)
    return count


def _in_a_child(call: Callable[[], int]) -> int:
    """What a call gives in a process of its own; minus the signal that ended it."""
    here, there = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(there, str(call()).encode())
        os._exit(0)
    os.close(there)
    with os.fdopen(here) as said:
        text = said.read()
    _, status = os.waitpid(child, 0)
    return -os.WTERMSIG(status) if os.WIFSIGNALED(status) else int(text)


if __name__ == "__main__":
    main()
