"""Builds a bundle again and again and is ended at a different point each time. Run by test_killed_builds.py.

Usage: killed_build.py BUNDLE ENDING=POINTS..., where an ending is a signal's name, or FULL for a disk that takes no
more. The graphs are copies: exporting them is slow, and writes nothing of its own. Modules are imported once; each
build is a fork. Prints how many points there are to end a build at.
"""

from __future__ import annotations

import gc
import os
import resource
import shutil
import signal
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from unittest.mock import patch

import torch
from rich.console import Console

from export import bundle_builder
from export.command_line import run_command, show_progress
from export.graphs.specs import GraphSpec
from export.readers import read_checkpoint
from runtime.backends.base import Device
from runtime.backends.imports import import_onnxruntime
from runtime.bundle import Bundle, EnginePrecision, EngineRecord
from tests.children import run_fork

EVENTS = frozenset(
    {"open", "os.rename", "os.mkdir", "os.rmdir", "os.remove", "os.chmod", "os.link", "ctypes.call_function"}
)

EXPECTED = {"SIGKILL": -signal.SIGKILL, "SIGTERM": 143, "SIGHUP": 129, "SIGINT": 130, "FULL": 1}
"""How a build ends: its exit code, or minus its signal."""


def main() -> None:
    target, plan = Path(sys.argv[1]), dict(one.split("=") for one in sys.argv[2:])
    torch.set_num_threads(1)
    store = Path(shutil.copytree(target, target.with_name("store")))
    checkpoint = read_checkpoint("demo", None)
    import_onnxruntime()  # which a build would import in each fork
    gc.freeze()  # the modules' objects: to go through them would copy their memory in each fork
    export_graph = _copy_graph(Bundle(store))
    (target.parent / "thesis.txt").write_text("years of work")
    neighbours = sorted(target.parent.iterdir())
    with patch.multiple(bundle_builder, export_graph=export_graph, read_checkpoint=lambda *_: checkpoint):
        events = run_fork(partial(_build, target, 0, ""))
        for ending, points in plan.items():
            total = max(one.bytes for one in Bundle(target).manifest.files.values()) if ending == "FULL" else events
            assert total > int(points)
            _kill_builds(target, int(points), ending, total, neighbours)
    print(events)


def _kill_builds(target: Path, points: int, ending: str, total: int, neighbours: Sequence[Path]) -> None:
    """End a build at each of so many points; require a whole bundle and nothing else after each."""
    for point in range(1, points + 1):
        status = run_fork(partial(_build, target, max(1, point * total // (points + 1)), ending))
        assert status == EXPECTED[ending], f"{ending}, point {point}: {status}"
        Bundle(target)  # whole, old or new: every file is compared
        left = set(target.parent.iterdir()) - set(neighbours)
        # Of the last build that was killed; each removes those of the builds before it.
        assert len(left) <= (ending == "SIGKILL"), (ending, left)
    assert run_fork(partial(_build, target, 0, ending)) > 0
    Bundle(target)
    assert sorted(target.parent.iterdir()) == neighbours


def _copy_graph(store: Bundle) -> Callable[[GraphSpec, Path, EnginePrecision, Device], EngineRecord]:
    """Return an exporter that copies graphs from a bundle."""

    def export(spec: GraphSpec, folder: Path, _: EnginePrecision, __: Device) -> EngineRecord:
        record = next(record for record in store.manifest.engines.values() if record.file == spec.io.file)
        for path in (store.path(record.file), store.path(f"{record.file}.data")):
            if path.exists():
                shutil.copyfile(path, folder / path.name)
        return record

    return export


def _build(target: Path, ended_at: int, ending: str) -> int:
    """Build, and return how many times that touched the file system, or the exit code of a build that was ended.

    Args:
        ended_at: the time at which it is ended, or the size at which a file cannot grow any more; 0 for neither.
    """
    count = 0

    def count_event(event: str, _: tuple[object, ...]) -> None:
        nonlocal count
        if event in EVENTS:
            count += 1
            if count == ended_at and ending != "FULL":
                os.kill(os.getpid(), signal.Signals[ending])

    def build() -> None:
        with show_progress(Console(stderr=True), 7) as progress:
            bundle_builder.build("demo", target, progress)

    if ended_at and ending == "FULL":
        resource.setrlimit(resource.RLIMIT_FSIZE, (ended_at, ended_at))
    sys.addaudithook(count_event)
    code = run_command(build)
    return code if ended_at else count


if __name__ == "__main__":
    main()
