"""Regions of any shape: masks, polygons, mouse traces and points."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from runtime.errors import RegionError
from runtime.regions import checks
from runtime.regions.canvas import Array, Canvas
from runtime.regions.outline import MaskOutline, PolygonOutline, PolygonsOutline, PolylineOutline
from runtime.regions.published import PublishedTrace
from runtime.regions.run_lengths import MAX_PIXELS


def check_mask_size(shape: Sequence[int]) -> None:
    """Refuse masks (..., H, W) of more pixels than can be meant; a view of one number may claim any size.

    Raises:
        RegionError: names the limit.
    """
    if math.prod(shape) > MAX_PIXELS:
        raise RegionError(f"Mask: expected at most {MAX_PIXELS} pixels, got {shape[-1]} x {shape[-2]}")


@dataclass(frozen=True, eq=False)
class Mask:
    """A mask (H, W) of the image: bool, or numbers of which 0 is outside and all others are inside.

    It has the image's size, or another of the same aspect ratio up to a pixel's rounding; then each of its cells covers
    its share of the image.

    Example:
        >>> mask = Mask(np.asarray(Image.open("export/demo/sample/mask.png")))
        >>> captioner.caption(scene, [mask])[0].text
        'a small dotted blue moon'
    """

    array: npt.NDArray[np.bool_]

    def __init__(self, array: npt.ArrayLike) -> None:
        mask = np.asarray(array)
        if mask.ndim != 2 or mask.dtype.kind not in "biuf":
            raise RegionError(f"Mask: expected a numeric array (H, W), got shape {mask.shape}, dtype {mask.dtype}")
        check_mask_size(mask.shape)
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
        image_wh = canvas.view.image_wh
        self._check_size(image_wh)
        (rows, columns), (width, height) = self.array.shape, image_wh
        x_edges = canvas.view.to_input(np.stack([np.linspace(0, width, columns + 1), np.zeros(columns + 1)], axis=1))
        y_edges = canvas.view.to_input(np.stack([np.zeros(rows + 1), np.linspace(0, height, rows + 1)], axis=1))
        return canvas.from_patches(canvas.overlap(y_edges[:, 1]) @ self.array @ canvas.overlap(x_edges[:, 0]).T)

    def outline(self, image_wh: tuple[int, int]) -> MaskOutline:
        (rows, columns), (width, height) = self.array.shape, image_wh
        if (columns, rows) == (width, height):
            return MaskOutline(self.array)
        nearest_row = ((np.arange(height) + 0.5) * rows / height).astype(int)
        nearest_column = ((np.arange(width) + 0.5) * columns / width).astype(int)
        return MaskOutline(self.array[nearest_row][:, nearest_column])

    def _check_size(self, image_wh: tuple[int, int]) -> None:
        (rows, columns), (width, height) = self.array.shape, image_wh
        # Rounded in the same direction, sides that are the image's times one factor differ by less than this.
        if (columns, rows) != (width, height) and abs(columns * height - rows * width) >= max(width, height):
            raise RegionError(
                f"{self}: expected the image's size, {width} x {height} pixels, or its aspect ratio; resize the mask, "
                "or cut off what its model has padded"
            )


@dataclass(frozen=True)
class Polygon:
    """The inside of a closed line through points (x, y) in image pixels; the last joins the first.

    The coverage of each patch is exact. Where the line goes round twice, the inside counts once; where it crosses
    itself, parts that it encloses in opposite directions cancel within a patch.

    Example:
        >>> captioner.caption(scene, [Polygon([(353, 178), (508, 352), (277, 399)])])[0].text
        'a large striped red triangle'
    """

    points: tuple[tuple[float, float], ...]

    def __init__(self, points: Iterable[Sequence[float]]) -> None:
        object.__setattr__(self, "points", tuple(checks.point("Polygon", point) for point in points))
        if len(self.points) < 3:
            raise RegionError(f"Polygon: expected at least three points, got {len(self.points)}")

    def weights(self, canvas: Canvas) -> Array:
        return canvas.from_patches(_coverage(self, canvas))

    def outline(self, _image_wh: tuple[int, int]) -> PolygonOutline:
        return PolygonOutline(self.points)


@dataclass(frozen=True)
class PolygonSet:
    """Several polygons that are one region, such as the parts of a thing that something else hides the middle of.

    Where they lie over each other, a patch counts once at most.

    Args:
        polygons: polygons, or their points (x, y).

    Example:
        >>> parts = [(353, 178), (416, 249), (322, 268)], [(310, 306), (450, 288), (508, 352), (277, 399)]
        >>> captioner.caption(scene, [PolygonSet(parts)])[0].text
        'a large striped red triangle'
    """

    polygons: tuple[Polygon, ...]

    def __init__(self, polygons: Iterable[Polygon | Iterable[Sequence[float]]]) -> None:
        members = tuple(one if isinstance(one, Polygon) else Polygon(one) for one in polygons)
        if not members:
            raise RegionError("PolygonSet: expected at least one polygon, got none")
        object.__setattr__(self, "polygons", members)

    def weights(self, canvas: Canvas) -> Array:
        coverage = np.sum([_coverage(one, canvas) for one in self.polygons], axis=0)
        return canvas.from_patches(coverage.clip(max=1))

    def outline(self, _image_wh: tuple[int, int]) -> PolygonsOutline:
        return PolygonsOutline(tuple(one.points for one in self.polygons))


@dataclass(frozen=True)
class Trace:
    """A mouse trace: points in image pixels; a patch counts as often as the trace has a point in it.

    `Trace.normalized` takes points in 0..1 of the image. Points outside the image are left out, as published.

    Args:
        points: points (x, y) or {"x": ..., "y": ...}.
        pool: "count"; "attention" multiplies the counts by how much cls attends to the patch.

    Example:
        >>> captioner.caption(scene, [Trace([(166, 86), (173, 130), (216, 144), (180, 79)])])[0].text
        'a small striped orange star'
    """

    points: tuple[tuple[float, float], ...]
    pool: Literal["count", "attention"] = "count"
    is_normalized: bool = False

    def __init__(
        self,
        points: Iterable[Sequence[float] | Mapping[str, float]],
        pool: Literal["count", "attention"] = "count",
        is_normalized: bool = False,
    ) -> None:
        object.__setattr__(self, "points", tuple(checks.point("Trace", point) for point in points))
        object.__setattr__(self, "pool", pool)
        object.__setattr__(self, "is_normalized", is_normalized)
        checks.one_of("Trace", "pool", pool, ("count", "attention"))
        if not self.points:
            raise RegionError("Trace: expected at least one point, got none")

    @classmethod
    def normalized(
        cls,
        points: Iterable[Sequence[float] | Mapping[str, float]],
        pool: Literal["count", "attention"] = "count",
    ) -> Trace:
        """Return a trace in 0..1 of the image, from its top left corner (0, 0) to its bottom right corner (1, 1).

        Example:
            >>> Trace.normalized([(0.5, 0.25)]).pixels((640, 480))
            array([[320., 120.]])
        """
        return cls(points, pool, is_normalized=True)

    @staticmethod
    def published(
        points: Iterable[Sequence[float] | Mapping[str, float]],
        pool: Literal["count", "attention"] = "count",
    ) -> PublishedTrace:
        """Return a trace in 0..1 of the backbone's input, counted and scaled exactly as published.

        See published-system.md, section 4.

        Example:
            >>> captioner.caption(scene, [Trace.published([(0.23, 0.12), (0.24, 0.18), (0.30, 0.20)])])[0].text
            'a small striped orange star'
        """
        return PublishedTrace(points, pool)

    def pixels(self, image_wh: tuple[int, int]) -> Array:
        """Return the points (P, 2) as (x, y) in pixels of an image of that size.

        Example:
            >>> Trace([(3, 4)]).pixels((640, 480))
            array([[3., 4.]])
        """
        return np.array(self.points) * (np.array(image_wh) if self.is_normalized else 1.0)

    def weights(self, canvas: Canvas) -> Array:
        points = self.pixels(canvas.view.image_wh)
        inside = points[((points >= 0) & (points <= np.array(canvas.view.image_wh))).all(axis=1)]
        if not len(inside):
            width, height = canvas.view.image_wh
            raise RegionError(f"{self}: no point of it lies on the image of {width} x {height} pixels")
        counts = canvas.counts(canvas.cells(inside))
        return canvas.from_patches(counts * canvas.attention if self.pool == "attention" else counts)

    def outline(self, image_wh: tuple[int, int]) -> PolylineOutline:
        return PolylineOutline(tuple((x, y) for x, y in self.pixels(image_wh).tolist()))


@dataclass(frozen=True)
class Point:
    """A point in image pixels: the patch that contains it.

    Example:
        >>> captioner.caption(scene, [Point(350, 330)])[0].text
        'a large striped red triangle'
    """

    x: float
    y: float

    def __post_init__(self) -> None:
        for name in ("x", "y"):
            object.__setattr__(self, name, checks.number(f"Point {name}", getattr(self, name)))

    def weights(self, canvas: Canvas) -> Array:
        width, height = canvas.view.image_wh
        if not (0 <= self.x <= width and 0 <= self.y <= height):
            raise RegionError(f"{self} lies outside the image of {width} x {height} pixels")
        return Trace([(self.x, self.y)]).weights(canvas)

    def outline(self, _image_wh: tuple[int, int]) -> PolylineOutline:
        return PolylineOutline(((self.x, self.y),))


def _coverage(polygon: Polygon, canvas: Canvas) -> Array:
    """Return how much of each patch (G, G) lies inside a polygon, in 0..1."""
    points = canvas.view.to_input(np.array(polygon.points))
    limits = np.arange(canvas.grid + 1, dtype=np.float64) * canvas.patch
    with np.errstate(over="ignore", invalid="ignore"):  # of corners beyond 1e150, which leave nothing to sum
        areas = np.abs(np.diff(np.diff(_areas_below(points, limits), axis=0), axis=1)) / canvas.patch**2
    areas[areas < 1e-9] = 0  # rounding errors of patches outside
    return areas.clip(max=1)


def _areas_below(points: Array, limits: Array) -> Array:
    """Return the signed area of a polygon (P, 2) in x < limits[j], y < limits[i], for all i and j: (K, K) for K limits.

    By Green's theorem it is the integral of min(y, limits[i]) dx along the edges, each cut off at x = limits[j].
    """
    start, end = points[:, None, :], np.roll(points, -1, axis=0)[:, None, :]  # (P, 1, 2)
    (x_start, y_start), (x_end, y_end) = np.moveaxis(start, -1, 0), np.moveaxis(end, -1, 0)
    run = np.where(x_end == x_start, 1, x_end - x_start)  # a vertical edge has no area below it, whatever its height
    x_from, x_to = np.minimum(x_start, limits), np.minimum(x_end, limits)  # (P, K)
    # Where an edge is almost vertical the quotient overflows; it is clipped to 0..1 as all are.
    y_from, y_to = (y_start + ((x - x_start) / run).clip(0, 1) * (y_end - y_start) for x in (x_from, x_to))
    return np.stack([((x_to - x_from) * _mean_of_min(y_from, y_to, limit)).sum(axis=0) for limit in limits])


def _mean_of_min(start: Array, end: Array, limit: float) -> Array:
    """Return the mean of min(y, limit) over y from ``start`` to ``end``."""
    above_start, above_end = np.maximum(start - limit, 0), np.maximum(end - limit, 0)
    above = np.maximum(above_start, above_end)
    with np.errstate(over="ignore"):  # of ends that are almost equal; the result is at most half of what is above
        crossing = np.minimum(above**2 / np.maximum(2 * np.abs(end - start), 1e-300), above / 2)
    excess = np.where(np.minimum(start, end) >= limit, (above_start + above_end) / 2, crossing)
    return (start + end) / 2 - excess
