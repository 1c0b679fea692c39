"""Projection onto stored rows with torch's operators: on GPUs, and on CPUs without the native kernels.

Reading the rows dominates the products of many queries with many rows, and torch's own matrix products read them at the
memory's speed; intermediate results are small.

Shapes: R queries, M memory rows, D width, K refined rows of a query, m rows of a block.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from runtime.memory.blocks import blocks, stored_blocks
from runtime.memory.rows import ResidualRows, StoredRows

_MAX_LOGITS = 2**26
"""Queries x rows whose logits are kept: 256 MiB of float32."""
_ROWS_AT_ONCE = 2**17


class TorchKernels:
    """Implements `runtime.memory.kernels.ProjectionKernels`; residuals must be in memory to refine single rows."""

    reads_residual_from_file = False

    def project(self, rows: StoredRows, unit_queries: Tensor, temperature: float) -> Tensor:
        """Project in one pass over the rows, with a running softmax."""
        largest = unit_queries.new_full((len(unit_queries), 1), -math.inf)
        total, sums = torch.zeros_like(largest), torch.zeros_like(unit_queries)
        for block in blocks(rows, len(unit_queries)):
            logits = block.products(unit_queries) * (block.inverse_norms / temperature)
            new_largest = torch.maximum(largest, logits.amax(dim=1, keepdim=True))
            weights, shrink = torch.exp(logits - new_largest), torch.exp(largest - new_largest)
            total = total * shrink + weights.sum(dim=1, keepdim=True)
            sums = sums * shrink + block.weighted_sum(weights)
            largest = new_largest
        return sums / total

    def project_with_refinement(
        self, rows: StoredRows, unit_queries: Tensor, temperature: float, refine_top_k: int
    ) -> tuple[Tensor, Tensor]:
        """Project in two passes, logits and weighted sum; read the residuals of refined rows only."""
        parts = unit_queries.split(max(1, _MAX_LOGITS // len(rows)))
        sums, masses = zip(*(_project_part(rows, part, temperature, refine_top_k) for part in parts), strict=True)
        return torch.cat(sums), torch.cat(masses)


def _project_part(
    rows: StoredRows, unit_queries: Tensor, temperature: float, refine_top_k: int
) -> tuple[Tensor, Tensor]:
    assert rows.residual is not None
    logit_scales = rows.inverse_norms / temperature
    coarse = StoredRows(rows.stored, rows.inverse_norms, rows.scales)
    logits = torch.cat([block.products(unit_queries) for block in stored_blocks(coarse, _ROWS_AT_ONCE)], dim=1)
    logits *= logit_scales
    indices = logits.topk(min(refine_top_k, len(rows)), dim=1).indices
    residuals = _gather_residuals(rows.residual, indices)
    corrections = torch.einsum("rkd,rd->rk", residuals, unit_queries) * logit_scales[indices]
    logits.scatter_(1, indices, logits.gather(1, indices) + corrections)
    weights = torch.softmax(logits, dim=1, out=logits)
    top_weights = weights.gather(1, indices)
    sums = torch.einsum("rk,rkd->rd", top_weights, residuals)
    for block in stored_blocks(coarse, _ROWS_AT_ONCE):
        sums += block.weighted_sum(weights[:, block.start : block.start + len(block.inverse_norms)])
    lengths = (weights / rows.inverse_norms).sum(dim=1) - (top_weights / rows.inverse_norms[indices]).sum(dim=1)
    return sums, lengths.clamp(min=0) / sums.norm(dim=1)


def _gather_residuals(residual: ResidualRows, indices: Tensor) -> Tensor:
    """Return the residuals (R, K, D) float32 of the rows at ``indices`` (R, K)."""
    assert residual.values is not None
    return residual.values[indices].float() * residual.scales[indices][..., None]
