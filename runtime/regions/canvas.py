"""The canvas that regions are laid on (geometry, tokens and attention of an image), and the rows they become on it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol, TypeAlias, runtime_checkable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from runtime.bundle import TokenLayout
from runtime.errors import RegionError
from runtime.image import View

Array: TypeAlias = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Canvas:
    """One image as regions see it: its geometry on the backbone's input, its tokens, and the attention of cls.

    Attributes:
        view: how the image lies on the input.
        layout: which token is what.
        cls_attention_logits: the cls query's products with each patch key (H, N); None where no region asks for
            attention.
    """

    view: View
    layout: TokenLayout
    cls_attention_logits: Tensor | None = None

    @property
    def grid(self) -> int:
        """G, patches per side."""
        return self.layout.grid

    @property
    def patch(self) -> int:
        """Side of a patch, in input pixels."""
        return self.view.size // self.layout.grid

    @cached_property
    def attention(self) -> Array:
        """How much cls attends to each patch (G, G), summing to 1 (published-system.md, section 3).

        Copied from the device when first asked for.
        """
        return cls_attention(self._logits()).numpy().reshape(self.grid, self.grid)

    @cached_property
    def head_attention(self) -> Array:
        """The same for each head by itself (H, G, G)."""
        return torch.softmax(self._logits(), dim=-1).numpy().reshape(-1, self.grid, self.grid)

    def token(self, index: int) -> Array:
        """Return the row of weights (T,) of one token alone."""
        weights = np.zeros(self.layout.num_tokens)
        weights[index] = 1
        return weights

    def cls(self) -> Array:
        """Return the row of weights (T,) of the token that stands for the whole image.

        Raises:
            RegionError: the backbone has no such token.
        """
        return self.token(self.require_cls(self.layout, fix='use WholeImage(pool="mean")'))

    @staticmethod
    def require_cls(layout: TokenLayout, fix: str) -> int:
        """Return the index of the token that stands for the whole image.

        Args:
            fix: what to do where there is none, for the message.

        Raises:
            RegionError: the backbone has no such token.
        """
        if layout.cls_index is None:
            raise RegionError(f"the backbone has no cls token; {fix}")
        return layout.cls_index

    def row(self, patches: Array) -> Array:
        """Return the row of weights (T,) of patch weights (G, G), as they are."""
        return np.concatenate([np.zeros(self.layout.num_global), patches.ravel()])

    def from_patches(self, shares: Array) -> Array:
        """Return the row (T,) of shares (G, G) of a region, made to sum to 1.

        Raises:
            RegionError: the region covers nothing of what the backbone sees.
        """
        total = shares.sum()
        if not total > 0:
            raise RegionError(
                "it covers nothing of what the model sees"
                + ("" if self.view.offset_xy == (0, 0) else '; fit="crop" cuts the long side, fit="stretch" does not')
            )
        return self.row(shares / total)

    def overlap(self, edges: Array) -> Array:
        """Return how much of each patch, along x or y, lies between consecutive ``edges`` (K + 1,): (G, K)."""
        limits = np.arange(self.grid + 1) * float(self.patch)
        low = np.maximum(limits[:-1, None], edges[None, :-1])
        high = np.minimum(limits[1:, None], edges[None, 1:])
        return np.maximum(high - low, 0) / self.patch

    def cells(self, points: Array) -> npt.NDArray[np.intp]:
        """Return the patches (K, 2) as (row, column) of the points (P, 2); points the view cuts off are left out."""
        xy = self.view.to_input(points)
        shown = xy[((xy >= 0) & (xy <= self.view.size)).all(axis=1)]
        return np.minimum(shown // self.patch, self.grid - 1).astype(np.intp)[:, ::-1]

    def counts(self, cells: npt.NDArray[np.intp]) -> Array:
        """Return how often each patch (G, G) comes among ``cells`` (K, 2) as (row, column)."""
        counts = np.zeros((self.grid, self.grid))
        np.add.at(counts, tuple(cells.T), 1)
        return counts

    def _logits(self) -> Tensor:
        if self.cls_attention_logits is None:
            raise RegionError("it asks for the attention of cls, which was not given")
        check_attention(self.cls_attention_logits)
        return self.cls_attention_logits.detach().cpu().double()


@runtime_checkable
class Region(Protocol):
    """Anything that can say how much each token of an image belongs to it.

    With a method ``outline`` (`runtime.regions.outline.Outlined`) it is drawn too, and with an attribute
    ``is_of_patches`` that is False it is never re-encoded.

    Example:
        >>> class LeftHalf:
        ...     def weights(self, canvas):
        ...         inside = np.zeros((canvas.grid, canvas.grid))
        ...         inside[:, : canvas.grid // 2] = 1
        ...         return canvas.from_patches(inside)
        >>> len(captioner.caption(scene, [LeftHalf()]))
        1
    """

    def weights(self, canvas: Canvas) -> Array:
        """Return the region's row of weights (T,).

        Raises:
            RegionError: the region has no place on this image.

        Example:
            >>> canvas = captioner.encode(scene).canvases[0]
            >>> Patch(0, 0).weights(canvas).shape  # 1 cls + 4 registers + 16 x 16 patches
            (261,)
        """
        ...


def is_of_patches(region: Region) -> bool:
    """Return whether a region is a choice of patches, which can be re-encoded without the rest of the image.

    A kind that is not says so by a class attribute of this name: the whole image, its registers and attention heads,
    and crops.
    """
    return bool(getattr(region, "is_of_patches", True))


def cls_attention(logits: Tensor) -> Tensor:
    """Return a distribution over the patches (..., N) for logits of the heads (..., H, N): softmax of their mean.

    See published-system.md, section 3.

    Raises:
        RegionError: there is no head.
    """
    check_attention(logits)
    return torch.softmax(logits.mean(dim=-2), dim=-1)


def check_attention(logits: Tensor) -> None:
    """Raise RegionError if cls attention (..., H, N) has no heads, as that of many families of backbones."""
    if logits.shape[-2] == 0:
        raise RegionError(
            "it asks for the attention of cls, which this bundle's backbone does not have; pool by mean or gaussian"
        )


def gaussian(rows: Array, columns: Array, variance: float) -> Array:
    """Return exp(-(x^2 + y^2) / variance) for coordinates ``rows`` (K,) and ``columns`` (L,), up to a factor: (K, L).

    At variance 0 only the point nearest to the origin counts, of two equally near ones the lower.
    """
    if variance == 0:
        nearest = np.zeros((len(rows), len(columns)))
        # Rounded: the two middle coordinates of an even number may differ in their last bit.
        nearest[np.abs(rows).round(9).argmin(), np.abs(columns).round(9).argmin()] = 1
        return nearest
    squares = rows[:, None] ** 2 + columns[None] ** 2
    return np.exp(-(squares - squares.min()) / variance)  # the nearest point keeps 1 however small the variance


def weight_rows(regions: Sequence[Region], canvas: Canvas) -> Tensor:
    """Return rows of weights (R, T), float32 on the CPU, for the regions of one image.

    Raises:
        RegionError: names the first region that has no place on the image, or is of a class whose ``weights`` are no
            such row, by its number.
    """
    rows = np.zeros((len(regions), canvas.layout.num_tokens), np.float32)
    for number, region in enumerate(regions):
        # isinstance of a protocol takes as long as the row itself.
        if isinstance(region, type) or not callable(getattr(region, "weights", None)):
            kind = f"the class {region.__name__} itself" if isinstance(region, type) else type(region).__name__
            raise RegionError(f"region {number}: expected a Box, Mask, Trace or another region kind, got {kind}")
        try:
            row = _row_of(region, region.weights(canvas), canvas.layout.num_tokens)
        except RegionError as error:
            raise RegionError(f"region {number}: {error}") from None
        with np.errstate(over="ignore"):  # what has no float32 is infinite
            rows[number] = row
    finite = np.isfinite(rows).all(axis=1)
    if not finite.all():
        number = int(finite.argmin())
        raise RegionError(f"region {number}: {type(regions[number]).__name__}.weights: expected finite numbers")
    return torch.from_numpy(rows)


def _row_of(region: Region, weights: object, num_tokens: int) -> Array:
    """Return what a region's class, which may be a user's, says are its weights.

    Raises:
        RegionError: they are no row of numbers (T,).
    """
    row = np.asarray(weights.detach().cpu() if isinstance(weights, Tensor) else weights)
    if row.shape != (num_tokens,) or row.dtype.kind not in "biuf":
        got = f"{row.dtype} of shape {row.shape}"
        raise RegionError(f"{type(region).__name__}.weights: expected numbers of shape ({num_tokens},), got {got}")
    return row
