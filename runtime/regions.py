"""Region kinds. Every region of every kind is one row of weights over the tokens of its image.

Shapes: T tokens of an image = 1 cls + registers + N patches, N = G * G patches in rows from the top left; R regions.
Coordinates are pixels of the original image, x to the right and y down, with whole numbers on pixel edges: the box
(0, 0, width, height) is the whole image. A patch counts by the share of it that the region covers.

A new kind is one frozen dataclass with `weights`; nothing after this file knows which kind a region was.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from runtime.errors import RegionError
from runtime.image import View

Array: TypeAlias = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Canvas:
    """What a region is laid on: the view of its image and how the backbone cuts it into tokens."""

    view: View
    patch: int
    registers: int

    @property
    def grid(self) -> int:
        """G, patches per side."""
        return self.view.size // self.patch

    def from_patches(self, shares: Array) -> Array:
        """Shares (G, G) of a region to token weights (T,) that sum to 1.

        Raises:
            RegionError: the region covers nothing of what the backbone sees.
        """
        total = shares.sum()
        if not total > 0:
            raise RegionError(
                "it covers nothing of what the model sees"
                + ("" if self.view.offset_xy == (0, 0) else '; fit="crop" cuts the long side, fit="stretch" does not')
            )
        weights = np.zeros(1 + self.registers + self.grid**2)
        weights[1 + self.registers :] = shares.ravel() / total
        return weights

    def overlap(self, edges: Array) -> Array:
        """How much of each patch, along x or y, lies between consecutive ``edges`` (K + 1,) in input pixels: (G, K)."""
        limits = np.arange(self.grid + 1) * float(self.patch)
        low = np.maximum(limits[:-1, None], edges[None, :-1])
        high = np.minimum(limits[1:, None], edges[None, 1:])
        return np.maximum(high - low, 0) / self.patch

    def cells(self, points: Array) -> npt.NDArray[np.intp]:
        """The patches (K, 2) as (row, column) that hold the points (P, 2); points the view cuts off are left out."""
        xy = self.view.to_input(points)
        shown = xy[((xy >= 0) & (xy <= self.view.size)).all(axis=1)]
        return np.minimum(shown // self.patch, self.grid - 1).astype(np.intp)[:, ::-1]


class Region(Protocol):
    """Anything that can say how much each token of an image belongs to it."""

    def weights(self, canvas: Canvas) -> Array:
        """The region's row of weights (T,).

        Raises:
            RegionError: the region has no place on this image.
        """
        ...


@dataclass(frozen=True)
class WholeImage:
    """The whole image: the mean of its patches, or the cls token."""

    pool: Literal["mean", "cls"] = "mean"

    def __post_init__(self) -> None:
        if self.pool not in ("mean", "cls"):
            raise RegionError(f'{self}: expected pool "mean" or "cls", got {self.pool!r}')

    def weights(self, canvas: Canvas) -> Array:
        if self.pool == "mean":
            return canvas.from_patches(np.ones((canvas.grid, canvas.grid)))
        weights = np.zeros(1 + canvas.registers + canvas.grid**2)
        weights[0] = 1
        return weights


@dataclass(frozen=True)
class Box:
    """A box in image pixels, (x1, y1) its top left and (x2, y2) its bottom right corner, as in torchvision.

    The part that reaches outside the image is cut off; a box wholly outside is an error.
    """

    x1: float
    y1: float
    x2: float
    y2: float

    def __post_init__(self) -> None:
        for name in ("x1", "y1", "x2", "y2"):
            object.__setattr__(self, name, _number(f"Box {name}", getattr(self, name)))
        if not (self.x1 < self.x2 and self.y1 < self.y2):
            raise RegionError(f"{self}: expected x1 < x2 and y1 < y2; from x, y, width and height use Box.from_xywh")

    @classmethod
    def from_xywh(cls, x: float, y: float, width: float, height: float) -> Box:
        """A box by its top left corner and its size."""
        return cls(x, y, x + width, y + height)

    def weights(self, canvas: Canvas) -> Array:
        width, height = canvas.view.image_wh
        if self.x1 >= width or self.y1 >= height or self.x2 <= 0 or self.y2 <= 0:
            raise RegionError(f"{self} lies outside the image of {width} x {height} pixels")
        inside = np.clip([[self.x1, self.y1], [self.x2, self.y2]], 0, canvas.view.image_wh)
        edges = canvas.view.to_input(inside)
        return canvas.from_patches(canvas.overlap(edges[:, 1]) * canvas.overlap(edges[:, 0]).T)


@dataclass(frozen=True)
class BoxSet:
    """Several boxes under one caption; each counts the same, whatever its size (SPEC section 4, region set)."""

    boxes: tuple[Box, ...]

    def __init__(self, boxes: Iterable[Box | Sequence[float]]) -> None:
        object.__setattr__(self, "boxes", tuple(box if isinstance(box, Box) else _box(box) for box in boxes))
        if not self.boxes:
            raise RegionError("BoxSet: expected at least one box, got none")

    def weights(self, canvas: Canvas) -> Array:
        return np.mean([box.weights(canvas) for box in self.boxes], axis=0)


@dataclass(frozen=True, eq=False)
class Mask:
    """A mask over the image, (H, W) of its size: bool, or anything where 0 is outside and all else inside."""

    array: npt.NDArray[np.bool_]

    def __init__(self, array: npt.ArrayLike) -> None:
        mask = np.asarray(array)
        if mask.ndim != 2 or mask.dtype.kind not in "biuf":
            raise RegionError(f"Mask: expected a numeric array (H, W), got shape {mask.shape}, dtype {mask.dtype}")
        if mask.dtype.kind == "f" and not np.isfinite(mask).all():
            raise RegionError("Mask: expected finite numbers, got NaN or infinity")
        if not mask.any():
            raise RegionError("Mask: it is empty: no pixel of it is set")
        inside = mask != 0
        inside.setflags(write=False)
        object.__setattr__(self, "array", inside)

    def __repr__(self) -> str:
        height, width = self.array.shape
        return f"Mask({width}x{height}, {int(self.array.sum())} set)"

    def weights(self, canvas: Canvas) -> Array:
        width, height = canvas.view.image_wh
        if self.array.shape != (height, width):
            raise RegionError(
                f"{self}: expected the image's size, {width} x {height} pixels; a mask is as large as its image"
            )
        columns = canvas.view.to_input(np.stack([np.arange(width + 1.0), np.zeros(width + 1)], axis=1))[:, 0]
        rows = canvas.view.to_input(np.stack([np.zeros(height + 1), np.arange(height + 1.0)], axis=1))[:, 1]
        return canvas.from_patches(canvas.overlap(rows) @ self.array @ canvas.overlap(columns).T)


@dataclass(frozen=True)
class Trace:
    """A mouse trace: points in image pixels; a patch counts as often as the trace has a point in it.

    `Trace.normalized` takes points in 0..1 of the image. Points outside the image are left out, as published.
    """

    points: tuple[tuple[float, float], ...]
    is_normalized: bool = False

    def __init__(self, points: Iterable[Sequence[float]], is_normalized: bool = False) -> None:
        object.__setattr__(self, "points", tuple(_point(point) for point in points))
        object.__setattr__(self, "is_normalized", is_normalized)
        if not self.points:
            raise RegionError("Trace: expected at least one point, got none")

    @classmethod
    def normalized(cls, points: Iterable[Sequence[float]]) -> Trace:
        """A trace in shares of the image: (0, 0) its top left, (1, 1) its bottom right corner."""
        return cls(points, is_normalized=True)

    def pixels(self, image_wh: tuple[int, int]) -> Array:
        """The points (P, 2) as (x, y) in pixels of an image of that size."""
        return np.array(self.points) * (np.array(image_wh) if self.is_normalized else 1.0)

    def weights(self, canvas: Canvas) -> Array:
        points = self.pixels(canvas.view.image_wh)
        inside = points[((points >= 0) & (points <= np.array(canvas.view.image_wh))).all(axis=1)]
        if not len(inside):
            width, height = canvas.view.image_wh
            raise RegionError(f"{self}: no point of it lies on the image of {width} x {height} pixels")
        counts = np.zeros((canvas.grid, canvas.grid))
        np.add.at(counts, tuple(canvas.cells(inside).T), 1)
        return canvas.from_patches(counts)


@dataclass(frozen=True)
class Point:
    """One point in image pixels: the patch that holds it."""

    x: float
    y: float

    def __post_init__(self) -> None:
        for name in ("x", "y"):
            object.__setattr__(self, name, _number(f"Point {name}", getattr(self, name)))

    def weights(self, canvas: Canvas) -> Array:
        width, height = canvas.view.image_wh
        if not (0 <= self.x <= width and 0 <= self.y <= height):
            raise RegionError(f"{self} lies outside the image of {width} x {height} pixels")
        return Trace([(self.x, self.y)]).weights(canvas)


def weight_rows(regions: Sequence[Region], canvas: Canvas) -> torch.Tensor:
    """Rows of weights (R, T), float32 on the CPU, for the regions of one image.

    Raises:
        RegionError: names the first region that has no place on the image, by its number.
    """
    rows = np.zeros((len(regions), 1 + canvas.registers + canvas.grid**2), np.float32)
    for number, region in enumerate(regions):
        if not hasattr(region, "weights"):
            kind = type(region).__name__
            raise RegionError(f"region {number}: expected a Box, Mask, Trace or another region kind, got {kind}")
        try:
            rows[number] = region.weights(canvas)
        except RegionError as error:
            raise RegionError(f"region {number}: {error}") from None
    return torch.from_numpy(rows)


def _number(owner: str, value: object) -> float:
    """A finite float of what may be any library's number."""
    try:
        number = float(value)  # type: ignore[arg-type]  # what cannot be one raises
    except (TypeError, ValueError):
        raise RegionError(f"{owner}: expected a number, got {value!r}") from None
    if not math.isfinite(number):
        raise RegionError(f"{owner}: expected a finite number, got {number}")
    return number


def _box(corners: Sequence[float]) -> Box:
    if len(corners) != 4:
        raise RegionError(f"BoxSet: expected boxes of 4 numbers (x1, y1, x2, y2), got {len(corners)}")
    return Box(*corners)


def _point(point: Sequence[float]) -> tuple[float, float]:
    if len(point) != 2:
        raise RegionError(f"Trace: expected points of 2 numbers (x, y), got {len(point)}")
    return _number("Trace x", point[0]), _number("Trace y", point[1])
