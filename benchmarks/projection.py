"""How long vectors take through memory banks of any size: `python benchmarks/projection.py --rows 591753 10000000`.

Banks of random rows, in memory, without what rounding left of them; each variant of the native kernels and torch, in
turn. torch multiplies float32 by float32; of rows in fewer bits it has to make that first.

Shapes: R regions, M memory rows, D width.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence

import torch
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor

from export.command_line import run_command
from export.memory.quantization import STORED_AS
from runtime.memory import native_kernels as native
from runtime.memory import torch_kernels as torch_projection
from runtime.memory.rows import StoredRows

_TEMPERATURE = 0.01
_ROWS_AT_ONCE = 2**16


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    parser = argparse.ArgumentParser(description="Time the projection through memory banks.")
    parser.add_argument("--rows", type=int, nargs="+", default=[591_753], help="of the banks (default: 591753)")
    parser.add_argument("--width", type=int, default=768, help="default: %(default)s")
    parser.add_argument(
        "--precision", nargs="+", choices=STORED_AS, default=["fp32", "int8"], help="default: fp32 int8"
    )
    parser.add_argument("--regions", type=int, nargs="+", default=[1, 16, 64], help="default: 1 16 64")
    parser.add_argument(
        "--runs", type=int, default=3, help="timed runs of each; the best is shown (default: %(default)s)"
    )
    options = parser.parse_args(arguments)
    return run_command(lambda: Console(width=140).print(_table(options)))


def _table(options: argparse.Namespace) -> Table:
    library = native.library()
    variants = library.variants if library else ()
    table = Table(title=f"ms, best of {options.runs}; {torch.get_num_threads()} threads", box=box.MARKDOWN)
    for heading in ("rows", "stored in", "regions", "torch", *variants, "GB/s", "torch / best"):
        table.add_column(heading, justify="right")
    for count in options.rows:
        for precision in options.precision:
            rows = _random_rows(count, options.width, STORED_AS[precision])
            for regions in options.regions:
                table.add_row(f"{count:,}", precision, str(regions), *_row(library, rows, regions, options.runs))
            del rows
    return table


def _row(library: native.Library | None, rows: StoredRows, regions: int, runs: int) -> list[str]:
    width = rows.stored.shape[1]
    directions = torch.nn.functional.normalize(torch.randn(regions, width), dim=1)
    ways: list[Callable[[], Tensor]] = [lambda: torch_projection.project(rows, directions, _TEMPERATURE)]
    for name in library.variants if library else ():
        ways.append(lambda name=name: library.project(rows, directions, _TEMPERATURE, name))  # type: ignore[misc, union-attr]
    best = [float("inf")] * len(ways)
    for _ in range(1 + runs):
        for place, way in enumerate(ways):
            start = time.perf_counter()
            way()
            best[place] = min(best[place], time.perf_counter() - start)
    fastest = min(best)
    rate = rows.stored.nbytes / fastest / 1e9
    return [*(f"{1000 * each:,.0f}" for each in best), f"{rate:.1f}", f"{best[0] / min(best[1:], default=best[0]):.1f}"]


def _random_rows(count: int, width: int, dtype: torch.dtype) -> StoredRows:
    """Made block by block, for the largest banks fill most of the memory."""
    stored = torch.empty(count, width, dtype=dtype)
    inverse_norms = torch.empty(count)
    for start in range(0, count, _ROWS_AT_ONCE):
        block = torch.randn(min(_ROWS_AT_ONCE, count - start), width)
        if dtype == torch.int8:
            block = (32 * block).round().clamp(-127, 127)
        stored[start : start + len(block)] = block
        inverse_norms[start : start + len(block)] = 1 / block.norm(dim=1)
    return StoredRows(stored, inverse_norms, torch.ones(count) if dtype == torch.int8 else None)


if __name__ == "__main__":
    sys.exit(main())
