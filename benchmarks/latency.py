"""How long a bundle takes: `python benchmarks/latency.py engines/demo --regions 1 16`.

Times one image through the backbone and, apart from it, the description of its features for each number of regions
(weights, pooling, projection, decoding, text). The first call stands by itself; then warm-up, then the reported runs.
"""

from __future__ import annotations

import argparse
import os
import platform
import resource
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from runtime import Box, Captioner, PatchcaptionError

_WARM_UP = 3


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Time a bundle's stages.")
    parser.add_argument("engines", type=Path, nargs="?", default=Path("engines/demo"), help="the bundle")
    parser.add_argument("--regions", type=int, nargs="+", default=[1, 16], help="how many regions to describe at once")
    parser.add_argument("--runs", type=int, default=20, help="timed runs of each (default: 20)")
    parser.add_argument("--threads", type=int, help="CPU threads (default: the backend's choice)")
    options = parser.parse_args(arguments)
    try:
        with Captioner.load(options.engines, threads=options.threads) as captioner:
            Console().print(_measure(captioner, options))
    except PatchcaptionError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _measure(captioner: Captioner, options: argparse.Namespace) -> Table:
    seen = captioner.manifest.architecture
    title = f"{options.engines}: {seen.name}, {seen.size} px, {captioner.backend.name}, {os.cpu_count()} cores, "
    table = Table(title=title + f"Python {platform.python_version()}; {options.runs} runs after {_WARM_UP} of warm-up")
    for heading in ("stage", "first ms", "p50 ms", "p90 ms", "tokens a caption"):
        table.add_column(heading, justify="left" if heading == "stage" else "right")
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (480, 640, 3), np.uint8)
    table.add_row("read, resize, backbone", *_times(lambda: captioner.encode(image), options.runs), "")
    features = captioner.encode(image)
    for count in options.regions:
        corners = rng.uniform((0, 0, 330, 250), (310, 230, 640, 480), (count, 4))
        boxes = [Box(*box) for box in corners.tolist()]
        lengths = [len(caption.ids) for caption in captioner.describe(features, boxes)]
        times = _times(lambda boxes=boxes: captioner.describe(features, boxes), options.runs)  # type: ignore[misc]
        table.add_row(f"describe {count} regions", *times, f"{np.mean(lengths):.1f}, at most {max(lengths)}")
    peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    table.caption = f"peak memory of the process {peak_mib:.0f} MiB"
    return table


def _times(call: Callable[[], object], runs: int) -> tuple[str, str, str]:
    """First call, p50 and p90, in milliseconds."""
    times_ms = []
    for _ in range(1 + _WARM_UP + runs):
        start = time.perf_counter()
        call()
        times_ms.append(1000 * (time.perf_counter() - start))
    p50, p90 = np.percentile(times_ms[1 + _WARM_UP :], [50, 90])
    return f"{times_ms[0]:.1f}", f"{p50:.1f}", f"{p90:.1f}"


if __name__ == "__main__":
    sys.exit(main())
