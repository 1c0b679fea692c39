"""Builds a bundle again and again and is killed at a different point each time. Run by test_killed_builds.py.

Usage: killed_build.py BUNDLE POINTS. The graphs are copies: exporting them is slow, and writes nothing of its own.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from unittest.mock import patch

import torch
from rich.console import Console

from export import bundle_builder
from export.command_line import show_progress
from export.graphs.specs import GraphSpec
from export.readers import read_checkpoint
from runtime.backends.base import Device
from runtime.bundle import Bundle, EnginePrecision, EngineRecord

EVENTS = frozenset(
    {"open", "os.rename", "os.mkdir", "os.rmdir", "os.remove", "os.chmod", "os.link", "ctypes.call_function"}
)


def main() -> None:
    target, points = Path(sys.argv[1]), int(sys.argv[2])
    torch.set_num_threads(1)
    store = Path(shutil.copytree(target, target.with_name("store")))
    checkpoint = read_checkpoint("demo", None)
    export_graph = _copy_graph(Bundle(store))
    with patch.multiple(bundle_builder, export_graph=export_graph, read_checkpoint=lambda *_: checkpoint):
        _kill_builds(target, points)


def _kill_builds(target: Path, points: int) -> None:
    """Kill a build at each of so many points; require a whole bundle after each."""
    total = _run_in_child(partial(_build, target, 0))
    for point in range(1, points + 1):
        status = _run_in_child(partial(_build, target, max(1, point * total // (points + 1))))
        assert status == -signal.SIGKILL, f"point {point}: {status}"
        Bundle(target)  # whole, old or new: every file is compared
    leftovers = [path for path in target.parent.iterdir() if path.name.startswith(".")]
    assert len(leftovers) <= 1, leftovers  # of the last build; each removes those of the builds before it
    assert _run_in_child(partial(_build, target, 0)) > 0
    Bundle(target)
    assert [path.name for path in target.parent.iterdir() if path.name.startswith(".")] == []
    print(total)


def _copy_graph(store: Bundle) -> Callable[[GraphSpec, Path, EnginePrecision, Device], EngineRecord]:
    """Return an exporter that copies graphs from a bundle."""

    def export(spec: GraphSpec, folder: Path, _: EnginePrecision, __: Device) -> EngineRecord:
        record = next(record for record in store.manifest.engines.values() if record.file == spec.io.file)
        for path in (store.path(record.file), store.path(f"{record.file}.data")):
            if path.exists():
                shutil.copyfile(path, folder / path.name)
        return record

    return export


def _build(target: Path, killed_at: int) -> int:
    """Build, and return how many times that touched the file system; kill this process at one of them."""
    count = 0

    def count_event(event: str, _: tuple[object, ...]) -> None:
        nonlocal count
        if event in EVENTS:
            count += 1
            if count == killed_at:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count_event)
    with show_progress(Console(stderr=True), 7) as progress:
        bundle_builder.build("demo", target, progress)
    return count


def _run_in_child(call: Callable[[], int]) -> int:
    """Return the result of a call in a child process, or minus the signal that ended it."""
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:  # it must not end as Python ends: what libraries registered for that waits for the parent's threads
        try:
            os.write(write_end, str(call()).encode())
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    os.close(write_end)
    with os.fdopen(read_end) as pipe:
        text = pipe.read()
    _, status = os.waitpid(child, 0)
    assert status == 0 or os.WIFSIGNALED(status), "the call failed"
    return -os.WTERMSIG(status) if os.WIFSIGNALED(status) else int(text)


if __name__ == "__main__":
    main()
