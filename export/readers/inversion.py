"""Embedding inversion: projected vectors go back into CLIP's space (published-system.md, section 21).

Shapes: C width of CLIP's text embeddings, D width of vectors, E decoder width.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from export.checkpoint import CheckpointError

_WEIGHT, _BIAS = "clip_project.model.0.weight", "clip_project.model.0.bias"
_MIN_SINGULAR_VALUE = 1e-10


def fold_inversion(state: Mapping[str, Tensor], layer: tuple[Tensor, Tensor], source: str) -> dict[str, Tensor]:
    """Return the weights of a DeCap decoder for vectors of CLIP's width, for those of a backbone: C becomes D.

    Args:
        layer: weight (D, C) and bias (D,) of Talk2DINO's first layer, which is inverted.

    Raises:
        CheckpointError: the decoder is not for vectors of width C.
    """
    matrix, bias = (one.double() for one in layer)
    weight, own_bias = state.get(_WEIGHT), state.get(_BIAS)
    if weight is None or own_bias is None or weight.ndim != 2 or weight.shape[1] != matrix.shape[1]:
        got = "none" if weight is None else f"{tuple(weight.shape)}"
        raise CheckpointError(
            f"{source}: {_WEIGHT}: expected (E, {matrix.shape[1]}) and a bias, for vectors of CLIP's width, got {got}"
        )
    inverted = weight.double() @ pseudo_inverse(matrix)
    return {**state, _WEIGHT: inverted.float(), _BIAS: (own_bias.double() - inverted @ bias).float()}


def pseudo_inverse(matrix: Tensor) -> Tensor:
    """Return the pseudo-inverse (C, D) of a matrix (D, C), by its thin singular value decomposition."""
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    inverse = torch.where(values > _MIN_SINGULAR_VALUE, 1 / values, 0.0)
    return right.T @ (inverse[:, None] * left.T)
