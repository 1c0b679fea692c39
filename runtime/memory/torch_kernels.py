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
from runtime.memory.sums import RefinedSums

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
        self, rows: StoredRows, unit_queries: Tensor, temperature: float, refine_top_k: int, max_error: float = 0.0
    ) -> RefinedSums:
        """Project in two passes, logits and weighted sum; read the residuals of the ``refine_top_k`` nearest rows only.

        Args:
            max_error: not used: all of these rows are refined at once.
        """
        del max_error
        parts = unit_queries.split(max(1, _MAX_LOGITS // len(rows)))
        projected = (_project_part(rows, part, temperature, refine_top_k) for part in parts)
        return RefinedSums(*(torch.cat(found) for found in zip(*projected, strict=True)))


def _project_part(rows: StoredRows, unit_queries: Tensor, temperature: float, refine_top_k: int) -> RefinedSums:
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
    unrefined = weights.scatter(1, indices, 0)
    rest = torch.zeros_like(sums)
    for block in stored_blocks(coarse, _ROWS_AT_ONCE):
        columns = slice(block.start, block.start + len(block.inverse_norms))
        of_all, of_unrefined = block.weighted_sum(torch.cat([weights[:, columns], unrefined[:, columns]])).chunk(2)
        sums, rest = sums + of_all, rest + of_unrefined
    lengths = sums.norm(dim=1)
    across = rest - (rest * sums).sum(dim=1, keepdim=True) * sums / lengths[:, None].square()
    errors = (unrefined.square() @ rows.squared_errors).sqrt()
    errors = errors * math.hypot(1, 1 / (temperature * math.sqrt(sums.shape[1])))
    return RefinedSums(sums, errors / lengths, across.norm(dim=1) / lengths)


def _gather_residuals(residual: ResidualRows, indices: Tensor) -> Tensor:
    """Return the residuals (R, K, D) float32 of the rows at ``indices`` (R, K)."""
    assert residual.values is not None
    return residual.values[indices].float() * residual.scales[indices][..., None]
