"""Projection onto stored rows with torch's operators: on GPUs, and on CPUs without the native kernels.

The same two ways as `native.Library` has. Products of many regions with many rows are bound by reading the rows, which
torch's own matrix products do at the memory's speed; what is in between is small.

Shapes: R regions, M memory rows, D width, K best rows of a region, m rows of a block.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from runtime.memory.blocks import blocks, stored_blocks
from runtime.memory.rows import FineRows, StoredRows

_LOGITS_AT_ONCE = 2**26
"""Regions x rows whose logits are kept: 256 MiB of float32."""
_ROWS_AT_ONCE = 2**17


def project(rows: StoredRows, directions: Tensor, temperature: float) -> Tensor:
    """softmax(cosine / temperature) @ rows (R, D) for directions (R, D) of length 1, by all that is known of the rows.

    One pass with a running softmax.
    """
    largest = directions.new_full((len(directions), 1), -math.inf)
    total, mixed = torch.zeros_like(largest), torch.zeros_like(directions)
    for block in blocks(rows, len(directions)):
        logits = block.products(directions) * (block.inverse_norms / temperature)
        now = torch.maximum(largest, logits.amax(dim=1, keepdim=True))
        weights, shrink = torch.exp(logits - now), torch.exp(largest - now)
        total = total * shrink + weights.sum(dim=1, keepdim=True)
        mixed = mixed * shrink + block.mixed(weights)
        largest = now
    return mixed / total


def project_best(rows: StoredRows, directions: Tensor, temperature: float, best: int) -> tuple[Tensor, Tensor]:
    """The same from the rows as stored, but for the ``best`` of each region, to which what rounding left is added.

    Of ``rows.fine``, which must be in memory, only those are read.

    Returns:
        the sums (R, D), and how much of each is of rows as stored (R,): the sum of weight times row length over the
        other rows, as a share of the sum's length.
    """
    parts = directions.split(max(1, _LOGITS_AT_ONCE // len(rows)))
    mixed, tails = zip(*(_project_best(rows, part, temperature, best) for part in parts), strict=True)
    return torch.cat(mixed), torch.cat(tails)


def _project_best(rows: StoredRows, directions: Tensor, temperature: float, best: int) -> tuple[Tensor, Tensor]:
    assert rows.fine is not None
    of_rows = rows.inverse_norms / temperature
    coarse = StoredRows(rows.stored, rows.inverse_norms, rows.scales)
    logits = torch.cat([block.products(directions) for block in stored_blocks(coarse, _ROWS_AT_ONCE)], dim=1)
    logits *= of_rows
    places = logits.topk(min(best, len(rows)), dim=1).indices
    left = _left_of(rows.fine, places)
    nearer = logits.gather(1, places) + torch.einsum("rkd,rd->rk", left, directions) * of_rows[places]
    logits.scatter_(1, places, nearer)
    weights = torch.softmax(logits, dim=1, out=logits)
    of_best = weights.gather(1, places)
    mixed = torch.einsum("rk,rkd->rd", of_best, left)
    for block in stored_blocks(coarse, _ROWS_AT_ONCE):
        mixed += block.mixed(weights[:, block.start : block.start + len(block.inverse_norms)])
    lengths = (weights / rows.inverse_norms).sum(dim=1) - (of_best / rows.inverse_norms[places]).sum(dim=1)
    return mixed, lengths.clamp(min=0) / mixed.norm(dim=1)


def _left_of(fine: FineRows, places: Tensor) -> Tensor:
    """What rounding left of rows, by their numbers (R, K): (R, K, D) float32."""
    assert fine.numbers is not None
    return fine.numbers[places].float() * fine.scales[places][..., None]
