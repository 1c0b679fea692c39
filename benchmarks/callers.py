"""Many callers of one captioner, each with a region of its own: alone, and decoded together by `Captioner.batching`.

    python benchmarks/callers.py engines/demo --callers 16

Both ways are timed in turns. Each caller asks again as soon as it has its captions.
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

import torch
from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.timing.stages import as_regions, sample_boxes
from export.command_line import run_command
from runtime import Captioner, FeatureMap, PatchcaptionError, Region
from runtime.backends import BACKENDS

_TURNS = 3


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    parser = argparse.ArgumentParser(description="Time many callers of one captioner, alone and batched.")
    parser.add_argument("bundle", type=Path, nargs="?", default=Path("engines/demo"), help="default: %(default)s")
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
    for callers in options.callers:
        regions = as_regions(sample_boxes(captioner.manifest.architecture, callers))
        alone, batched = list[float](), list[float]()
        with captioner.batching(max_wait_ms=options.max_wait_ms, max_regions=callers) as batching:
            for turn in range(1 + _TURNS):
                pair = (
                    _rate(captioner.describe, features, regions, options.calls),
                    _rate(batching.describe, features, regions, options.calls),
                )
                if turn:  # the first warms up
                    alone.append(pair[0])
                    batched.append(pair[1])
        rates = statistics.median(alone), statistics.median(batched)
        table.add_row(str(callers), *(f"{rate:,.0f}" for rate in rates), f"{rates[1] / rates[0]:.1f}")
    return table


def _rate(
    describe: Callable[[FeatureMap, list[Region]], object], features: FeatureMap, regions: Sequence[Region], calls: int
) -> float:
    """Captions per second of as many threads as regions, each asking for its own again and again."""

    def work(region: Region) -> None:
        for _ in range(calls):
            describe(features, [region])

    with ThreadPoolExecutor(len(regions)) as threads:
        start = time.perf_counter()
        list(threads.map(work, regions))
        return calls * len(regions) / (time.perf_counter() - start)


if __name__ == "__main__":
    sys.exit(main())
