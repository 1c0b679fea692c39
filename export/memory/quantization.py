"""Memory rows in fewer bits, and what that left of them.

Numbers are rounded up or down at random, by how near they are to either: then errors have no direction, whatever the
rows are (with many zeros, or all alike), and what a row's error does to its cosine with a vector is known by chance.

Shapes: m rows, D width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from runtime.bundle import MemoryPrecision

STORED_AS = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16, "int8": torch.int8}
BEST = {"fp32": 0, "fp16": 256, "bf16": 1024, "int8": 4096}
"""How many rows nearest to a region the runtime takes with what rounding left, the more the more that is."""

_MOST = 127  # of int8, on both sides of 0
_SMALLEST_SCALE = 1e-30


@dataclass(frozen=True, eq=False)
class Rounded:
    """m rows as they are stored: row i is stored[i] * scales[i], and closer with fine[i] * fine_scales[i] added.

    Attributes:
        stored: (m, D) float32, float16, bfloat16 or int8.
        scales: (m,) with int8 and float16.
        fine: (m, D) int8, and
        fine_scales: (m,), with all but float32.
        largest_error: of a row without ``fine``, as a share of its length.
        largest_left: of a row with it.
    """

    stored: Tensor
    scales: Tensor | None = None
    fine: Tensor | None = None
    fine_scales: Tensor | None = None
    largest_error: float = 0.0
    largest_left: float = 0.0


def rounded(rows: Tensor, precision: MemoryPrecision, generator: torch.Generator) -> Rounded:
    """Rows (m, D) float32, none of them zero, in a precision."""
    if precision == "fp32":
        return Rounded(rows)
    scales = None
    if precision == "fp16":
        scales = rows.abs().amax(dim=1).clamp_min(_SMALLEST_SCALE)  # so that no row leaves the range of float16
        stored = _upper_bits(rows / scales[:, None], 13, generator).half()
    elif precision == "bf16":
        stored = _upper_bits(rows, 16, generator).bfloat16()
    else:
        scales = (rows.abs().amax(dim=1) / _MOST).clamp_min(_SMALLEST_SCALE)
        steps = torch.floor(rows / scales[:, None] + torch.rand(rows.shape, generator=generator))
        stored = steps.clamp(-_MOST, _MOST).to(torch.int8)
    left = rows - (stored.float() if scales is None else stored.float() * scales[:, None])
    fine_scales = (left.abs().amax(dim=1) / _MOST).clamp_min(_SMALLEST_SCALE)
    fine = torch.round(left / fine_scales[:, None]).to(torch.int8)
    still_left = left - fine * fine_scales[:, None]
    lengths = rows.norm(dim=1)
    largest_error, largest_left = (float((error.norm(dim=1) / lengths).max()) for error in (left, still_left))
    return Rounded(stored, scales, fine, fine_scales, largest_error, largest_left)


def _upper_bits(rows: Tensor, dropped: int, generator: torch.Generator) -> Tensor:
    """Rows in float32 without their lower bits: random ones, added, carry as often as they should."""
    bits = rows.contiguous().view(torch.int32)
    carried = bits + torch.randint(0, 2**dropped, bits.shape, generator=generator, dtype=torch.int32)
    return (carried & -(2**dropped)).view(torch.float32)
