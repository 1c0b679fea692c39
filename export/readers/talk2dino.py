"""Reads Talk2DINO's projection of CLIP's text embeddings into DINOv2's space (published-system.md, section 5)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from export.checkpoint import CheckpointError
from export.readers.weight_files import read_pickle, weight
from runtime.bundle import sha256_of

_FIRST, _SECOND, _OLD_SECOND = "linear_layer", "hidden_layers.0", "linear_layer2"

PUBLISHED_FILES = {
    "5db3e85d8745a621cddfcb5c76641f47a0514852a2da64138d5c893864c9bc81": (
        "t2d-dinov2-b-2024",
        "vitb_mlp_infonce of 2024-11, Patch-ioner's",
    ),
    "5f6efcc520f22916ecf3dfdfb01d6f57e701c1c2e1feda71a80d89e3cd752f0f": (
        "t2d-dinov2-b-2025",
        "vitb_mlp_infonce of 2025-07, Talk2DINO's own, not the one that Patch-ioner's banks and decoders were made "
        "with",
    ),
    "6fc5ce7a05d8f1c829c174d87b861da05399cf0bfe50de3711ac940115d85fcc": (
        "t2d-dinov3-b",
        "that of DINOv3 ViT-B, not of DINOv2",
    ),
}
"""The text space and the description of published files, by sha256: two different files share a name."""


@dataclass(frozen=True, eq=False)
class Talk2Dino:
    """Talk2DINO's projection: two layers with a tanh between them.

    Attributes:
        first, second: weight and bias of (hidden, C) and (D, hidden), C the width of CLIP's text embeddings.
        text_space: the identity of the space that it maps into.
        identity: which published file it is, for a note to the user.
        sha256: the file's hash.
    """

    first: tuple[Tensor, Tensor]
    second: tuple[Tensor, Tensor]
    text_space: str
    identity: str
    sha256: str

    @property
    def text_width(self) -> int:
        """C, the width of text embeddings."""
        return self.first[0].shape[1]

    @property
    def width(self) -> int:
        """D, the width of mapped embeddings."""
        return self.second[0].shape[0]

    def __call__(self, texts: Tensor) -> Tensor:
        """Map text embeddings (m, C), not normalised, to (m, D)."""
        return F.linear(torch.tanh(F.linear(texts, *self.first)), *self.second)


def read_talk2dino(path: Path) -> Talk2Dino:
    """Read the projection in a .pth file, its second layer named hidden_layers.0 or, as in old files, linear_layer2.

    Raises:
        CheckpointError: a weight is missing, unknown or wrongly shaped.
    """
    state = read_pickle(path)
    second = _OLD_SECOND if f"{_OLD_SECOND}.weight" in state else _SECOND
    layers = {name: _layer(state, name, path) for name in (_FIRST, second)}
    unknown = sorted(set(state) - {f"{name}.{part}" for name in layers for part in ("weight", "bias")})
    if unknown:
        raise CheckpointError(f"{path}: {unknown[0]} is not a weight of Talk2DINO's two layers")
    hidden, expected = layers[_FIRST][0].shape[0], layers[second][0].shape[1]
    if hidden != expected:
        raise CheckpointError(f"{path}: {second}.weight: expected {hidden} columns, {_FIRST}'s rows, got {expected}")
    digest = sha256_of(path)
    unknown_file = (f"t2d-{digest[:12]}", f"an unpublished file (sha256 {digest[:12]})")
    text_space, identity = PUBLISHED_FILES.get(digest, unknown_file)
    return Talk2Dino(layers[_FIRST], layers[second], text_space, identity, digest)


def _layer(state: dict[str, Tensor], name: str, path: Path) -> tuple[Tensor, Tensor]:
    matrix, bias = (weight(state, f"{name}.{part}", path).float() for part in ("weight", "bias"))
    if matrix.ndim != 2 or bias.shape != matrix.shape[:1]:
        got = f"{tuple(matrix.shape)} and {tuple(bias.shape)}"
        raise CheckpointError(f"{path}: {name}: expected weight (out, in) and bias (out), got {got}")
    return matrix, bias
