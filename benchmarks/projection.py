"""Time the projection through memory banks of any size: `python benchmarks/projection.py --rows 591753 10000000`.

Banks of random rows near a thousand concepts, in memory, without residuals; each variant of the native kernels, torch
and a plain read of memory, in turn. torch multiplies float32 by float32, and has to convert rows that are stored in
fewer bits. Narrow queries are near one concept each: the softmax has its weight in one row of a thousand, as in trained
banks. Wide queries are near none: it has weight in all rows.

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
_CONCEPTS = 1000
_CASES = ("narrow", "wide")
_READ_FLOATS = 2**26
"""256 MiB, far more than a cache holds."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    parser = argparse.ArgumentParser(description="Time the projection through memory banks.")
    parser.add_argument("--rows", type=int, nargs="+", default=[591_753], help="of the banks (default: 591753)")
    parser.add_argument("--width", type=int, default=768, help="default: %(default)s")
    parser.add_argument(
        "--precision", nargs="+", choices=NUMBER_FORMATS, default=["fp32", "int8"], help="default: fp32 int8"
    )
    parser.add_argument("--regions", type=int, nargs="+", default=[1, 16, 64], help="default: 1 16 64")
    parser.add_argument("--cases", nargs="+", choices=_CASES, default=_CASES, help="default: narrow wide")
    parser.add_argument(
        "--runs", type=int, default=3, help="timed runs of each; the best is shown (default: %(default)s)"
    )
    options = parser.parse_args(arguments)
    return run_command(lambda: Console(width=140).print(_table(options)))


def _table(options: argparse.Namespace) -> Table:
    library = native_kernels.library()
    variants = library.variants if library else ()
    table = Table(title=f"ms, best of {options.runs}; {torch.get_num_threads()} threads", box=box.MARKDOWN)
    headings = ("rows", "stored in", "regions", "softmax", "torch", *variants, "GB/s", "of reading", "torch / best")
    for heading in headings:
        table.add_column(heading, justify="right")
    memory = torch.ones(_READ_FLOATS)
    for count in options.rows:
        for precision in options.precision:
            rows = _random_rows(count, options.width, NUMBER_FORMATS[precision].torch)
            for regions in options.regions:
                for case in options.cases:
                    queries = _queries(regions, options.width, case)
                    cells = _row(library, rows, queries, memory, options.runs)
                    table.add_row(f"{count:,}", precision, str(regions), case, *cells)
            del rows
    return table


def _row(
    library: native_kernels.NativeKernels | None, rows: StoredRows, queries: Tensor, memory: Tensor, runs: int
) -> list[str]:
    """Return the cells after the case: torch, the native variants, the best rate, and how it compares.

    Args:
        memory: floats that are read for comparison, as fast as torch can.
    """
    kernels: list[Callable[[], Tensor]] = [partial(TorchKernels().project, rows, queries, _TEMPERATURE)]
    if library:
        kernels += [partial(library.project, rows, queries, _TEMPERATURE, name) for name in library.variants]
    calls: list[Callable[[], Tensor]] = [partial(torch.sum, memory), *kernels]
    best_s = [float("inf")] * len(calls)
    for _ in range(1 + runs):
        for index, call in enumerate(calls):
            start = time.perf_counter()
            call()
            best_s[index] = min(best_s[index], time.perf_counter() - start)
    read_s, *kernel_s = best_s
    bytes_per_s = rows.stored.nbytes / min(kernel_s)
    share = bytes_per_s / (memory.nbytes / read_s)
    speedup = kernel_s[0] / min(kernel_s[1:], default=kernel_s[0])
    times = (f"{1000 * seconds:,.0f}" for seconds in kernel_s)
    return [*times, f"{bytes_per_s / 1e9:.1f}", f"{share:.0%}", f"{speedup:.1f}"]


def _concepts(width: int) -> Tensor:
    return torch.randn(_CONCEPTS, width, generator=torch.Generator().manual_seed(0))


def _queries(regions: int, width: int, case: str) -> Tensor:
    directions = torch.randn(regions, width)
    if case == "narrow":
        directions += _concepts(width)[torch.randint(_CONCEPTS, (regions,))]
    return torch.nn.functional.normalize(directions, dim=1)


def _random_rows(count: int, width: int, dtype: torch.dtype) -> StoredRows:
    """Return random rows, made block by block, for the largest banks fill most of the memory."""
    stored = torch.empty(count, width, dtype=dtype)
    inverse_norms = torch.empty(count)
    concepts = _concepts(width)
    for start in range(0, count, _BLOCK_ROWS):
        of_block = torch.randint(_CONCEPTS, (min(_BLOCK_ROWS, count - start),))
        block = (concepts[of_block] + torch.randn(len(of_block), width)) / 2**0.5
        if dtype == torch.int8:
            block = (32 * block).round().clamp(-127, 127)
        stored[start : start + len(block)] = block
        inverse_norms[start : start + len(block)] = 1 / block.norm(dim=1)
    return StoredRows(stored, inverse_norms, torch.ones(count) if dtype == torch.int8 else None)


if __name__ == "__main__":
    sys.exit(main())
