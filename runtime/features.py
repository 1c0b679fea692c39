"""The tensors that pass between the stages: the tokens of images, and the vectors of regions."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal, TypeAlias

from torch import Tensor

from runtime.bundle import TokenLayout
from runtime.image import OpenImage, View
from runtime.regions import Canvas, cls_attention

Space: TypeAlias = Literal["visual", "text"]


@dataclass(frozen=True, eq=False)
class FeatureMap:
    """The tokens of B images, T of width D each, kept on the device for as many descriptions as wanted.

    Attributes:
        tokens: final-normed tokens (B, T, D): global tokens (cls, registers), then patches row by row.
        cls_attention_logits: scaled products of the cls query with each patch key in the last block (B, H, N), before
            softmax; H is 0 for backbones without cls attention.
        views: how each image lies on the backbone's input.
        layout: which token is what.
        images: the images themselves (RGB), for regions that are cropped and encoded; None where they were not kept.

    Example:
        >>> features = captioner.encode([scene, scene])
        >>> len(features), features.tokens.shape, features[1].patches.shape
        (2, torch.Size([2, 261, 192]), torch.Size([1, 256, 192]))
    """

    tokens: Tensor
    cls_attention_logits: Tensor
    views: tuple[View, ...]
    layout: TokenLayout
    images: tuple[OpenImage, ...] | None = None

    def __len__(self) -> int:
        """Return B, the number of images."""
        return len(self.views)

    @property
    def image_whs(self) -> tuple[tuple[int, int], ...]:
        """The width and height of each image, in pixels."""
        return tuple(view.image_wh for view in self.views)

    def __getitem__(self, image: int) -> FeatureMap:
        """Return the feature map of one image, sharing memory with this one."""
        start = range(len(self))[image]
        rows = slice(start, start + 1)
        images = None if self.images is None else self.images[rows]
        return FeatureMap(self.tokens[rows], self.cls_attention_logits[rows], self.views[rows], self.layout, images)

    @cached_property
    def canvases(self) -> tuple[Canvas, ...]:
        """The canvas that regions are laid on, for each image."""
        return tuple(
            Canvas(view, self.layout, logits)
            for view, logits in zip(self.views, self.cls_attention_logits, strict=True)
        )

    @property
    def cls(self) -> Tensor:
        """The tokens (B, D) that stand for the whole images.

        Raises:
            RegionError: the backbone has no such token.
        """
        return self.tokens[:, Canvas.require_cls(self.layout, fix="use the mean of its patches")]

    @property
    def registers(self) -> Tensor:
        """The register tokens (B, number of registers, D)."""
        return self.tokens[:, list(self.layout.register_indices)]

    @property
    def patches(self) -> Tensor:
        """The patch tokens (B, N, D), row by row from the top left."""
        return self.tokens[:, self.layout.num_global :]

    @property
    def cls_attention(self) -> Tensor:
        """How much the cls token attends to each patch (B, N), summing to 1 (published-system.md, section 3).

        Raises:
            RegionError: the backbone has no cls attention.
        """
        return cls_attention(self.cls_attention_logits)


@dataclass(frozen=True, eq=False)
class RegionVectors:
    """The vectors of R regions, one image's after another's.

    Attributes:
        data: (R, D).
        space: ``visual`` before the memory projection, ``text`` after it.
    """

    data: Tensor
    space: Space = "visual"

    def __len__(self) -> int:
        """Return R."""
        return len(self.data)
