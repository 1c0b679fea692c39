"""Products of vectors with some stored rows: what projection and the search for captions are made of.

On a CPU rows are expanded to float32, few at a time, so that they stay in its caches. On a GPU they are multiplied as
they are stored, many at a time: expanding them would write and read more bytes than they have.

Shapes: R regions, m rows of a block, D width.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from runtime.memory.rows import StoredRows

_CPU_ROWS = 2**12
"""What is larger than 32 MB the C library asks the system for anew each time, page by page."""
_GPU_PRODUCTS = 2**25
"""Regions x rows of one block: 128 MiB of float32. Fewer rows would take more calls, which cost more than they do."""
_GPU_ROWS = 2**18
_HAS_FLOAT_SUMS = tuple(int(part) for part in torch.__version__.split(".")[:2]) >= (2, 8)
_LOW_FACTORS = {torch.float16: 2.0**11, torch.bfloat16: 1.0}
"""What the low half of a float32 is multiplied by: without, float16 would round much of it to nothing."""


@dataclass(frozen=True, eq=False)
class Block:
    """m rows, which are the sum over parts of numbers[p, m] * scales[p, m].

    Attributes:
        start: the number of the first.
        inverse_norms: (m,) float32.
        parts: numbers (m, D) float32, float16 or bfloat16, and their scales (m,) float32; None for ones.
    """

    start: int
    inverse_norms: Tensor
    parts: tuple[tuple[Tensor, Tensor | None], ...]

    def products(self, vectors: Tensor) -> Tensor:
        """Of vectors (R, D) float32 with each row: (R, m)."""
        of_parts = [_product(vectors, numbers.T) * (1 if scales is None else scales) for numbers, scales in self.parts]
        return sum(of_parts[1:], of_parts[0])

    def mixed(self, weights: Tensor) -> Tensor:
        """The sum of rows by weights (R, m) float32: (R, D)."""
        of_parts = [
            _product(weights if scales is None else weights * scales, numbers) for numbers, scales in self.parts
        ]
        return sum(of_parts[1:], of_parts[0])


def blocks(rows: StoredRows, regions: int) -> Iterator[Block]:
    """All rows, some at a time.

    Args:
        regions: R, of the products that will be asked for.
    """
    if rows.stored.device.type == "cpu":
        return float_blocks(rows)
    return stored_blocks(rows, min(_GPU_ROWS, _GPU_PRODUCTS // max(1, regions)))


def float_blocks(rows: StoredRows) -> Iterator[Block]:
    """Expanded to float32."""
    for start in range(0, len(rows), _CPU_ROWS):
        end = start + _CPU_ROWS
        yield Block(start, rows.inverse_norms[start:end], ((rows.floats(start, end), None),))


def stored_blocks(rows: StoredRows, at_once: int) -> Iterator[Block]:
    """As they are stored; int8 as bfloat16, which has all of its values."""
    stored = [(rows.stored, rows.scales)]
    if rows.fine is not None:
        assert rows.fine.numbers is not None
        stored.append((rows.fine.numbers, rows.fine.scales))
    for start in range(0, len(rows), at_once):
        end = start + at_once
        parts = (
            (_as_multiplied(numbers[start:end]), None if scales is None else scales[start:end])
            for numbers, scales in stored
        )
        yield Block(start, rows.inverse_norms[start:end], tuple(parts))


def _as_multiplied(numbers: Tensor) -> Tensor:
    return numbers.bfloat16() if numbers.dtype == torch.int8 else numbers


def _product(left: Tensor, right: Tensor) -> Tensor:
    """left (R, k) float32 @ right (k, n) of a few bits, summed in float32: (R, n).

    The left is two numbers of those bits, high and low, so that nothing of it is rounded that counts.
    """
    if right.dtype == torch.float32:
        return left @ right
    high = left.to(right.dtype)
    factor = _LOW_FACTORS[right.dtype]
    low = ((left - high) * factor).to(right.dtype)
    of_high, of_low = _summed_in_float(torch.cat([high, low]), right).chunk(2)
    return of_high.add_(of_low, alpha=1 / factor)


def _summed_in_float(left: Tensor, right: Tensor) -> Tensor:
    if left.is_cuda and _HAS_FLOAT_SUMS:
        return torch.mm(left, right, out_dtype=torch.float32)
    return left.float() @ right.float()
