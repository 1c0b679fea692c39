"""Tell what overlapping the stages of a video could bring at most, and what it does.

    python benchmarks/overlap.py engines/demo

However stages are scheduled, n cores make at most n times as many frames a second as one core that does nothing else.
So n times the rate of one core, with one thread in all, over the rate of one step after another on all cores is the
most that overlapping could bring. What cores can do that share a memory is less: that is measured too, by a process on
each core that has frames of its own and waits for nobody. All are timed in turns, in processes of their own.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Generator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from functools import partial
from multiprocessing import get_context
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Literal, TypeAlias, get_args

if not __package__:  # run by its path: the packages of this clone, whatever is installed
    sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.timing.stages import as_regions, sample_boxes
from benchmarks.timing.stream_throughput import write_clip
from export.command_line import bundle_folder, run_command
from runtime import Captioner, Region
from runtime.backends import BACKENDS
from runtime.options import Precision
from runtime.system.machine import usable_cores
from runtime.video.sources import open_source

Way: TypeAlias = Literal["one core", "each core", "in turn", "streamed"]
WAYS: tuple[Way, ...] = get_args(Way)
_WARM_UP_FRAMES = 4
_MAX_WARM_UP_S = 600.0
"""How long a process waits for others, of which one may have failed."""

_start: Barrier
"""At which the processes of a turn wait until all are warm."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    parser = argparse.ArgumentParser(description="Tell what overlapping the stages of a video could bring, and does.")
    parser.add_argument("bundle", type=bundle_folder, nargs="?", default=Path("engines/demo"), help="(engines/demo)")
    parser.add_argument("--backend", choices=BACKENDS, default="cpu", help="default: %(default)s")
    parser.add_argument("--precision", choices=get_args(Precision), default="fp32", help="default: %(default)s")
    parser.add_argument("--regions", type=int, nargs="+", default=[1, 16], help="in each frame (default: 1 16)")
    parser.add_argument("--frames", type=int, default=12, help="of a turn, at most 86 (default: %(default)s)")
    parser.add_argument("--turns", type=int, default=3, help="default: %(default)s")
    return run_command(partial(_run, parser.parse_args(arguments)))


def _run(options: argparse.Namespace) -> None:
    cores = usable_cores()
    table = Table(title=f"frames per second, medians of {options.turns} turns; {cores} cores", box=box.MARKDOWN)
    for heading in ("regions", *WAYS, "at most", "each core / in turn", "does"):
        table.add_column(heading, justify="right")
    with tempfile.TemporaryDirectory() as folder:
        clip = Path(folder) / "clip.mp4"
        write_clip(clip)
        for count in options.regions:
            rates = _rates(options, clip, count)
            in_turn = rates["in turn"]
            most = most_that_overlap_brings(rates["one core"], in_turn, cores)
            numbers = (*rates.values(), most, rates["each core"] / in_turn, rates["streamed"] / in_turn)
            table.add_row(str(count), *(f"{number:.2f}" for number in numbers))
    Console(width=120).print(table)


def most_that_overlap_brings(one_core_fps: float, in_turn_fps: float, cores: int) -> float:
    """Return how many times as fast as one step after another on all cores any schedule of the same work can be."""
    return cores * one_core_fps / in_turn_fps


def _rates(options: argparse.Namespace, clip: Path, count: int) -> dict[Way, float]:
    """Return the median frames per second of each of `WAYS`."""
    rates: dict[Way, list[float]] = {way: [] for way in WAYS}
    for _ in range(options.turns):
        for way in WAYS:
            rates[way].append(_rate_of_processes(way, options, clip, count))
    return {way: statistics.median(rates[way]) for way in WAYS}


def _rate_of_processes(way: Way, options: argparse.Namespace, clip: Path, count: int) -> float:
    """Return the frames per second of one turn, in new processes, for threads once started stay."""
    cores = sorted(os.sched_getaffinity(0))
    cores_of_processes = {"one core": [cores[:1]], "each core": [[core] for core in cores]}.get(way, [cores])
    context = get_context("spawn")
    start = context.Barrier(len(cores_of_processes), timeout=_MAX_WARM_UP_S)
    with ProcessPoolExecutor(len(cores_of_processes), context, _set_start, (start,)) as processes:
        rates = [processes.submit(_rate, way, own, options, clip, count) for own in cores_of_processes]
        return sum(rate.result() for rate in rates)


def _set_start(start: Barrier) -> None:
    """Let this process begin when the others do, too."""
    global _start
    _start = start


def _rate(way: Way, cores: list[int], options: argparse.Namespace, clip: Path, count: int) -> float:
    """Return the frames per second of this process on its cores, after a few frames that fill the stages."""
    os.sched_setaffinity(0, cores)
    torch.set_num_threads(len(cores))
    with Captioner.load(options.bundle, options.backend, precision=options.precision, threads=len(cores)) as captioner:
        backbone = captioner.manifest.backbone
        regions = as_regions(sample_boxes(backbone.tokens, backbone.patch_size, count))
        play = _streamed if way == "streamed" else _in_turn
        with closing(play(captioner, clip, regions)) as described:
            for _ in range(_WARM_UP_FRAMES):
                next(described)
            _start.wait()
            start = time.perf_counter()
            for _ in range(options.frames):
                next(described)
            return options.frames / (time.perf_counter() - start)


def _in_turn(captioner: Captioner, clip: Path, regions: list[Region]) -> Generator[None, None, None]:
    for frame in open_source(clip).frames():
        captioner.describe(captioner.encode(frame.image), regions)
        yield


def _streamed(captioner: Captioner, clip: Path, regions: list[Region]) -> Generator[None, None, None]:
    with captioner.stream(clip, regions, reuse=None) as stream:
        for _ in stream:
            yield


if __name__ == "__main__":
    sys.exit(main())
