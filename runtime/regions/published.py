"""Boxes and traces in the published system's own coordinates and rounding, for published numbers.

See published-system.md, section 4.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

import numpy as np

from runtime.errors import RegionError
from runtime.regions import checks
from runtime.regions.canvas import Array, Canvas, gaussian

Rounding: TypeAlias = Literal["size", "corners", "corners_without_end"]


@dataclass(frozen=True)
class PublishedBox:
    """`Box.published`: a corner and a size, each rounded down to whole patches by itself; both ends count.

    Attributes:
        frame: "crop" for pixels of the backbone's input; "image" for pixels of the image, which go through the
            published rule for boxes of images (`View.published_box`).
        rounding: "size" rounds x, y, width and height; "corners" rounds x, y, x + width and y + height, which is what
            the published re-encoding of boxes takes; "corners_without_end" does so too, but what the last corner lies
            in does not count, as for AlphaCLIP.
    """

    x: float
    y: float
    width: float
    height: float
    pool: Literal["mean", "gaussian", "attention"] = "mean"
    variance: float = 0.5
    frame: Literal["crop", "image"] = "crop"
    rounding: Rounding = "size"

    def __post_init__(self) -> None:
        for name in ("x", "y", "width", "height"):
            object.__setattr__(self, name, checks.number(f"Box.published {name}", getattr(self, name)))
        checks.one_of("Box.published", "pool", self.pool, ("mean", "gaussian", "attention"))
        checks.one_of("Box.published", "frame", self.frame, ("crop", "image"))
        checks.one_of("Box.published", "rounding", self.rounding, get_args(Rounding))
        object.__setattr__(self, "variance", checks.variance("Box.published", self.variance))
        corner = (self.x, self.y) if self.frame == "crop" else ()  # what reaches out of an image is cut off
        if min(self.width, self.height, *corner) < 0:
            raise RegionError(f"{self}: expected no number below 0")

    def weights(self, canvas: Canvas) -> Array:
        rows, columns = self._span(canvas)
        patches = np.zeros((canvas.grid, canvas.grid))
        inside = patches[rows, columns]  # a view: the slices end at the grid's edge
        if not inside.size:
            where = "reaches across nothing of" if self.rounding == "corners_without_end" else "lies outside"
            raise RegionError(f"{self}: it {where} the input of {canvas.view.size} x {canvas.view.size} pixels")
        if self.pool == "gaussian":
            height, width = inside.shape
            inside[...] = gaussian(np.linspace(-1, 1, height), np.linspace(-1, 1, width), self.variance)
        elif self.pool == "attention":
            inside[...] = canvas.attention[rows, columns]
        else:
            inside[...] = 1
        return canvas.from_patches(patches)

    def _span(self, canvas: Canvas) -> tuple[slice, slice]:
        """Return the rows and columns of patches that the box counts."""
        x, y, width, height = self.x, self.y, self.width, self.height
        patch = canvas.patch
        if self.frame == "image":
            x, y, width, height = canvas.view.published_box(x, y, width, height)

        def span(start: float, length: float) -> slice:
            first = int(start // patch)
            if self.rounding != "size":
                return slice(first, int((start + length) // patch) + (self.rounding == "corners"))
            return slice(first, first + int(length // patch) + 1)

        return span(y, height), span(x, width)


@dataclass(frozen=True)
class PublishedTrace:
    """`Trace.published`: points in 0..1 of the backbone's input; the sum of their patches, divided by N.

    That scale matters to a decoder without a memory bank (published-system.md, section 5).
    """

    points: tuple[tuple[float, float], ...]
    pool: Literal["count", "attention"] = "count"

    def __init__(
        self,
        points: Iterable[Sequence[float] | Mapping[str, float]],
        pool: Literal["count", "attention"] = "count",
    ) -> None:
        object.__setattr__(self, "points", tuple(checks.point("Trace.published", point) for point in points))
        object.__setattr__(self, "pool", pool)
        checks.one_of("Trace.published", "pool", pool, ("count", "attention"))
        if not self.points:
            raise RegionError("Trace.published: expected at least one point, got none")

    def weights(self, canvas: Canvas) -> Array:
        points = np.array(self.points)
        inside = points[((points >= 0) & (points <= 1)).all(axis=1)]
        if not len(inside):
            raise RegionError(f"{self}: no point of it lies in 0..1")
        # Divided by 1 / G and not times G: the published arithmetic decides which side of an edge a point falls.
        columns_and_rows = np.minimum(inside / (1 / canvas.grid), canvas.grid - 1).astype(np.intp)
        counts = canvas.counts(columns_and_rows[:, ::-1])
        if self.pool == "attention":
            counts *= canvas.attention
        return canvas.row(counts / canvas.grid**2)
