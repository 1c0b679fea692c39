"""What the backbone saw in some images, kept on the device for as many descriptions as wanted."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from runtime.image import View
from runtime.regions import Canvas


@dataclass(frozen=True, eq=False)
class FeatureMap:
    """The tokens of B images: T = 1 cls + registers + N patches of width D each.

    Attributes:
        tokens: final-normed tokens (B, T, D) in the order cls, registers, patches row by row.
        cls_scores: scaled products of the cls query with each patch key in the last block (B, H, N), before softmax.
        views: how each image lies on the backbone's input.
        patch: side of a patch in input pixels.
        registers: number of register tokens.
    """

    tokens: Tensor
    cls_scores: Tensor
    views: tuple[View, ...]
    patch: int
    registers: int

    def __len__(self) -> int:
        """B, the number of images."""
        return len(self.views)

    def __getitem__(self, image: int) -> FeatureMap:
        """The feature map of one image, sharing memory with this one."""
        start = range(len(self))[image]
        rows = slice(start, start + 1)
        return FeatureMap(self.tokens[rows], self.cls_scores[rows], self.views[rows], self.patch, self.registers)

    @property
    def canvases(self) -> tuple[Canvas, ...]:
        """What regions are laid on, for each image."""
        return tuple(Canvas(view, self.patch, self.registers) for view in self.views)

    @property
    def cls(self) -> Tensor:
        """(B, D)."""
        return self.tokens[:, 0]

    @property
    def patches(self) -> Tensor:
        """(B, N, D), row by row from the top left."""
        return self.tokens[:, 1 + self.registers :]

    @property
    def cls_attention(self) -> Tensor:
        """How much the cls token attends to each patch (B, N): softmax over the patches of the heads' mean score
        (SPEC section 3)."""
        return torch.softmax(self.cls_scores.mean(dim=1), dim=-1)
