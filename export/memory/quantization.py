"""Stochastic rounding of memory rows to fewer bits, and the residual that rounding leaves.

Values are rounded up or down at random, with probabilities by their distance to either: errors then have no direction,
whatever the rows are (with many zeros, or all alike), and the distribution of a cosine's error is known.

Shapes: m rows, D width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from runtime.bundle.dtypes import StoragePrecision

REFINE_TOP_K: dict[StoragePrecision, int] = {"fp32": 0, "fp16": 256, "bf16": 1024, "int8": 5120}
"""The most rows that are refined by their residuals for a region, by precision: coarser storage needs more."""

_MAX_INT8 = 127  # on both sides of 0
_MIN_SCALE = 1e-30


@dataclass(frozen=True, eq=False)
class QuantizedRows:
    """m rows as stored: row i is stored[i] * scales[i], and closer with residual[i] * residual_scales[i] added.

    Attributes:
        stored: (m, D) float32, float16, bfloat16 or int8.
        scales: (m,) with int8 and float16.
        residual: (m, D) int8, with all but float32.
        residual_scales: (m,), with all but float32.
        max_error: the largest error of a row without its residual, relative to its length.
        max_residual_error: the largest error of a row with its residual, relative to its length.
    """

    stored: Tensor
    scales: Tensor | None = None
    residual: Tensor | None = None
    residual_scales: Tensor | None = None
    max_error: float = 0.0
    max_residual_error: float = 0.0


def quantize_rows(rows: Tensor, precision: StoragePrecision, generator: torch.Generator) -> QuantizedRows:
    """Round rows (m, D) float32, none of them zero, to a precision."""
    if precision == "fp32":
        return QuantizedRows(rows)
    scales = None
    if precision == "fp16":
        scales = rows.abs().amax(dim=1).clamp_min(_MIN_SCALE)  # so that no row leaves the range of float16
        stored = _drop_low_bits(rows / scales[:, None], 13, generator).half()
    elif precision == "bf16":
        stored = _drop_low_bits(rows, 16, generator).bfloat16()
    else:
        scales = (rows.abs().amax(dim=1) / _MAX_INT8).clamp_min(_MIN_SCALE)
        steps = torch.floor(rows / scales[:, None] + torch.rand(rows.shape, generator=generator))
        stored = steps.clamp(-_MAX_INT8, _MAX_INT8).to(torch.int8)
    error = rows - (stored.float() if scales is None else stored.float() * scales[:, None])
    residual_scales = (error.abs().amax(dim=1) / _MAX_INT8).clamp_min(_MIN_SCALE)
    residual = torch.round(error / residual_scales[:, None]).to(torch.int8)
    residual_error = error - residual * residual_scales[:, None]
    lengths = rows.norm(dim=1)
    max_error, max_residual_error = (float((one.norm(dim=1) / lengths).max()) for one in (error, residual_error))
    return QuantizedRows(stored, scales, residual, residual_scales, max_error, max_residual_error)


def _drop_low_bits(rows: Tensor, dropped: int, generator: torch.Generator) -> Tensor:
    """Return rows in float32 without their low bits; adding random low bits first carries as often as it should."""
    bits = rows.contiguous().view(torch.int32)
    carried = bits + torch.randint(0, 2**dropped, bits.shape, generator=generator, dtype=torch.int32)
    return (carried & -(2**dropped)).view(torch.float32)
