"""What the backbone saw in some images, kept on the device for as many descriptions as wanted."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from runtime.image import OpenImage, View
from runtime.regions import Canvas, cls_attention


@dataclass(frozen=True, eq=False)
class FeatureMap:
    """The tokens of B images: T = 1 cls + registers + N patches of width D each.

    Attributes:
        tokens: final-normed tokens (B, T, D) in the order cls, registers, patches row by row.
        cls_scores: scaled products of the cls query with each patch key in the last block (B, H, N), before softmax.
        views: how each image lies on the backbone's input.
        patch: side of a patch in input pixels.
        registers: number of register tokens.
        images: the images themselves (RGB), for regions that are cut out and encoded; None where they were not kept.

    Example:
        >>> features = captioner.encode([scene, scene])
        >>> len(features), features.tokens.shape, features[1].patches.shape
        (2, torch.Size([2, 261, 192]), torch.Size([1, 256, 192]))
    """

    tokens: Tensor
    cls_scores: Tensor
    views: tuple[View, ...]
    patch: int
    registers: int
    images: tuple[OpenImage, ...] | None = None

    def __len__(self) -> int:
        """B, the number of images."""
        return len(self.views)

    def __getitem__(self, image: int) -> FeatureMap:
        """The feature map of one image, sharing memory with this one."""
        start = range(len(self))[image]
        rows = slice(start, start + 1)
        images = None if self.images is None else self.images[rows]
        return FeatureMap(
            self.tokens[rows], self.cls_scores[rows], self.views[rows], self.patch, self.registers, images
        )

    @cached_property
    def canvases(self) -> tuple[Canvas, ...]:
        """What regions are laid on, for each image."""
        return tuple(
            Canvas(view, self.patch, self.registers, scores)
            for view, scores in zip(self.views, self.cls_scores, strict=True)
        )

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
        """How much the cls token attends to each patch (B, N), summing to 1 (SPEC section 3)."""
        return cls_attention(self.cls_scores)
