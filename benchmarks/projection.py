"""Time the projection through memory banks of any size: `python benchmarks/projection.py --rows 591753 10000000`.

Banks of random rows, in memory, without residuals; each variant of the native kernels and torch, in turn. torch
multiplies float32 by float32, and has to convert rows that are stored in fewer bits.

Shapes: R regions, M memory rows, D width.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

if not __package__:  # run by its path: the packages of this clone, whatever is installed
    sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor

from export.command_line import run_command
from runtime.bundle.dtypes import NUMBER_FORMATS
from runtime.memory import native_kernels
from runtime.memory.rows import StoredRows
from runtime.memory.torch_kernels import TorchKernels

_TEMPERATURE = 0.01
_BLOCK_ROWS = 2**16


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    parser = argparse.ArgumentParser(description="Time the projection through memory banks.")
    parser.add_argument("--rows", type=int, nargs="+", default=[591_753], help="of the banks (default: 591753)")
    parser.add_argument("--width", type=int, default=768, help="default: %(default)s")
    parser.add_argument(
        "--precision", nargs="+", choices=NUMBER_FORMATS, default=["fp32", "int8"], help="default: fp32 int8"
    )
    parser.add_argument("--regions", type=int, nargs="+", default=[1, 16, 64], help="default: 1 16 64")
    parser.add_argument(
        "--runs", type=int, default=3, help="timed runs of each; the best is shown (default: %(default)s)"
    )
    options = parser.parse_args(arguments)
    return run_command(lambda: Console(width=140).print(_table(options)))


def _table(options: argparse.Namespace) -> Table:
    library = native_kernels.library()
    variants = library.variants if library else ()
    table = Table(title=f"ms, best of {options.runs}; {torch.get_num_threads()} threads", box=box.MARKDOWN)
    for heading in ("rows", "stored in", "regions", "torch", *variants, "GB/s", "torch / best"):
        table.add_column(heading, justify="right")
    for count in options.rows:
        for precision in options.precision:
            rows = _random_rows(count, options.width, NUMBER_FORMATS[precision].torch)
            for regions in options.regions:
                table.add_row(f"{count:,}", precision, str(regions), *_row(library, rows, regions, options.runs))
            del rows
    return table


def _row(library: native_kernels.NativeKernels | None, rows: StoredRows, regions: int, runs: int) -> list[str]:
    """Return the cells after the regions: torch, the native variants, the best rate, and how it compares with torch."""
    queries = torch.nn.functional.normalize(torch.randn(regions, rows.stored.shape[1]), dim=1)
    kernels: list[Callable[[], Tensor]] = [partial(TorchKernels().project, rows, queries, _TEMPERATURE)]
    if library:
        kernels += [partial(library.project, rows, queries, _TEMPERATURE, name) for name in library.variants]
    best_s = [float("inf")] * len(kernels)
    for _ in range(1 + runs):
        for index, project in enumerate(kernels):
            start = time.perf_counter()
            project()
            best_s[index] = min(best_s[index], time.perf_counter() - start)
    gigabytes_per_s = rows.stored.nbytes / min(best_s) / 1e9
    speedup = best_s[0] / min(best_s[1:], default=best_s[0])
    return [*(f"{1000 * seconds:,.0f}" for seconds in best_s), f"{gigabytes_per_s:.1f}", f"{speedup:.1f}"]


def _random_rows(count: int, width: int, dtype: torch.dtype) -> StoredRows:
    """Return random rows, made block by block, for the largest banks fill most of the memory."""
    stored = torch.empty(count, width, dtype=dtype)
    inverse_norms = torch.empty(count)
    for start in range(0, count, _BLOCK_ROWS):
        block = torch.randn(min(_BLOCK_ROWS, count - start), width)
        if dtype == torch.int8:
            block = (32 * block).round().clamp(-127, 127)
        stored[start : start + len(block)] = block
        inverse_norms[start : start + len(block)] = 1 / block.norm(dim=1)
    return StoredRows(stored, inverse_norms, torch.ones(count) if dtype == torch.int8 else None)


if __name__ == "__main__":
    sys.exit(main())
