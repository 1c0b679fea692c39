"""Time concurrent callers of one captioner, each with a region of its own: alone, and by `Captioner.batching`.

    python benchmarks/callers.py engines/demo --callers 16

The two are timed in turns. Each caller calls again as soon as it has its captions.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

if not __package__:  # run by its path: the packages of this clone, whatever is installed
    sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.timing.stages import as_regions, sample_boxes
from export.command_line import bundle_folder, run_command
from runtime import Captioner, FeatureMap, PatchcaptionError, Region
from runtime.backends import BACKENDS

_TURNS = 3


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    parser = argparse.ArgumentParser(description="Time many callers of one captioner, alone and batched.")
    parser.add_argument(
        "bundle", type=bundle_folder, nargs="?", default=Path("engines/demo"), help="default: %(default)s"
    )
    parser.add_argument("--callers", type=int, nargs="+", default=[1, 4, 16], help="threads (default: 1 4 16)")
    parser.add_argument("--calls", type=int, default=20, help="of each caller in a turn (default: %(default)s)")
    parser.add_argument("--max-wait-ms", type=float, default=4.0, help="default: 4")
    parser.add_argument("--backend", choices=BACKENDS, default="auto", help="default: %(default)s")
    return run_command(partial(_run, parser.parse_args(arguments)))


def _run(options: argparse.Namespace) -> None:
    if min(*options.callers, options.calls) < 1:
        raise PatchcaptionError("--callers, --calls: expected at least 1")
    with Captioner.load(options.bundle, options.backend) as captioner:
        Console(width=120).print(_table(captioner, options))


def _table(captioner: Captioner, options: argparse.Namespace) -> Table:
    pixels = torch.randint(0, 256, (3, 240, 320), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    features = captioner.encode(pixels)
    table = Table(title=f"captions per second; {captioner.backend.name}", box=box.MARKDOWN)
    for heading in ("callers", "alone", "batched", "batched / alone"):
        table.add_column(heading, justify="right")
    backbone = captioner.manifest.backbone
    for callers in options.callers:
        regions = as_regions(sample_boxes(backbone.tokens, backbone.patch_size, callers))
        with captioner.batching(max_wait_ms=options.max_wait_ms, max_regions=callers) as batching:
            ways = (captioner.describe, batching.describe)
            turns = [[_rate(way, features, regions, options.calls) for way in ways] for _ in range(1 + _TURNS)]
        alone, batched = (statistics.median(rates) for rates in zip(*turns[1:], strict=True))  # the first warms up
        table.add_row(str(callers), f"{alone:,.0f}", f"{batched:,.0f}", f"{batched / alone:.1f}")
    return table


def _rate(
    describe: Callable[[FeatureMap, list[Region]], object], features: FeatureMap, regions: Sequence[Region], calls: int
) -> float:
    """Return the captions per second of a thread for each region, which describes it ``calls`` times."""

    def call_repeatedly(region: Region) -> None:
        for _ in range(calls):
            describe(features, [region])

    with ThreadPoolExecutor(len(regions)) as threads:
        start = time.perf_counter()
        list(threads.map(call_repeatedly, regions))
        return calls * len(regions) / (time.perf_counter() - start)


if __name__ == "__main__":
    sys.exit(main())
