"""Products of queries with blocks of stored rows: what projection and caption search are made of.

On a CPU rows are expanded to float32, few at a time, so that they stay in its caches. On a GPU they are multiplied as
they are stored, many at a time: expanding them would write and read more bytes than they have.

Shapes: R queries, m rows of a block, D width.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from runtime.memory.rows import StoredRows

_CPU_ROWS = 2**12
"""The C library returns allocations above 32 MB to the system and faults them in again page by page."""
_GPU_PRODUCTS = 2**25
"""Queries x rows of one block: 128 MiB of float32. Fewer rows would take more calls, which cost more than they do."""
_GPU_ROWS = 2**18
_HAS_FLOAT_SUMS = tuple(int(part) for part in torch.__version__.split(".")[:2]) >= (2, 8)
_LOW_FACTORS = {torch.float16: 2.0**11, torch.bfloat16: 1.0}
"""Scale of a float32's low half: without it float16 would round much of it to nothing."""


@dataclass(frozen=True, eq=False)
class RowBlock:
    """m rows, which are the sum over parts of values[p, m] * scales[p, m].

    Attributes:
        start: the index of the first row.
        inverse_norms: (m,) float32.
        parts: values (m, D) float32, float16 or bfloat16, and their scales (m,) float32; None for ones.
    """

    start: int
    inverse_norms: Tensor
    parts: tuple[tuple[Tensor, Tensor | None], ...]

    def products(self, queries: Tensor) -> Tensor:
        """Return the product of each query (R, D) float32 with each row: (R, m)."""
        products = [_product(queries, values.T) * (1 if scales is None else scales) for values, scales in self.parts]
        return sum(products[1:], products[0])

    def weighted_sum(self, weights: Tensor) -> Tensor:
        """Return the sums of rows by weights (R, m) float32: (R, D)."""
        sums = [_product(weights if scales is None else weights * scales, values) for values, scales in self.parts]
        return sum(sums[1:], sums[0])


def blocks(rows: StoredRows, num_queries: int) -> Iterator[RowBlock]:
    """Yield all rows in blocks that suit their device.

    Args:
        num_queries: R, of the products that will be asked for.
    """
    if rows.stored.device.type == "cpu":
        return float_blocks(rows)
    return stored_blocks(rows, min(_GPU_ROWS, _GPU_PRODUCTS // max(1, num_queries)))


def float_blocks(rows: StoredRows) -> Iterator[RowBlock]:
    """Yield all rows expanded to float32."""
    for start in range(0, len(rows), _CPU_ROWS):
        end = start + _CPU_ROWS
        yield RowBlock(start, rows.inverse_norms[start:end], ((rows.floats(start, end), None),))


def stored_blocks(rows: StoredRows, rows_at_once: int) -> Iterator[RowBlock]:
    """Yield all rows as they are stored; int8 as bfloat16, which represents all of its values."""
    stored = [(rows.stored, rows.scales)]
    if rows.residual is not None:
        assert rows.residual.values is not None
        stored.append((rows.residual.values, rows.residual.scales))
    for start in range(0, len(rows), rows_at_once):
        end = start + rows_at_once
        parts = (
            (_as_factor(values[start:end]), None if scales is None else scales[start:end]) for values, scales in stored
        )
        yield RowBlock(start, rows.inverse_norms[start:end], tuple(parts))


def _as_factor(values: Tensor) -> Tensor:
    return values.bfloat16() if values.dtype == torch.int8 else values


def _product(left: Tensor, right: Tensor) -> Tensor:
    """Return left (R, k) float32 @ right (k, n) in half precision, summed in float32: (R, n).

    The left factor is split into two half-precision numbers, high and low, so that its rounding does not matter.
    """
    if right.dtype == torch.float32:
        return left @ right
    high = left.to(right.dtype)
    factor = _LOW_FACTORS[right.dtype]
    low = ((left - high) * factor).to(right.dtype)
    high_product, low_product = _sum_in_float32(torch.cat([high, low]), right).chunk(2)
    return high_product.add_(low_product, alpha=1 / factor)


def _sum_in_float32(left: Tensor, right: Tensor) -> Tensor:
    if left.is_cuda and _HAS_FLOAT_SUMS:
        return torch.mm(left, right, out_dtype=torch.float32)
    return left.float() @ right.float()
