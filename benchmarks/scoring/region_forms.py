"""Makes the regions of a ground truth from its numbers, in the user's form or in the published one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from benchmarks.scoring.annotation_files import BoxFormat, BoxNumbers
from runtime import Box, BoxSet, Region, Trace, WholeImage

POOLS = {
    "captions": ("cls", "mean", "gaussian", "attention"),
    "dense": ("mean", "gaussian", "attention"),
    "sets": ("mean", "gaussian", "attention"),
    "traces": ("count", "attention"),
}
"""The pools that a region may have, by the kind of ground truth."""


@dataclass(frozen=True)
class RegionForm:
    """The rules by which the numbers in a file of ground truth become regions.

    Attributes:
        form: "exact" for regions as users give them, "published" for the published rounding (published-system.md,
            sections 1 and 4).
        box_format: the four numbers of a box, in image pixels: "xyxy" two corners, "xywh" the top left corner and size.
        pool: None for the default of the kind of region.
        variance: that of a Gaussian pool; None for the default of the kind of region.
    """

    form: Literal["exact", "published"] = "exact"
    box_format: BoxFormat = "xyxy"
    pool: str | None = None
    variance: float | None = None

    def whole_image(self) -> Region:
        """Return the region of a whole image."""
        return WholeImage(**self._options("pool", "variance"))

    def box(self, numbers: BoxNumbers) -> Region:
        """Return a box; one without width or height is made one pixel wide or high, as published.

        Raises:
            RegionError: the numbers are not a box.
        """
        if self.form == "published":
            return Box.published(*self._xywh(numbers), frame="image", **self._options("pool", "variance"))
        return Box(*self.corners(numbers), **self._options("pool", "variance"))

    def box_set(self, boxes: Sequence[BoxNumbers]) -> Region:
        """Return a set of boxes under one caption."""
        if self.form == "published":
            return BoxSet.published(
                [self._xywh(box) for box in boxes], frame="image", **self._options("pool", "variance")
            )
        return BoxSet([Box(*self.corners(box), **self._options("pool", "variance")) for box in boxes])

    def trace(self, points: Sequence[tuple[float, float]]) -> Region:
        """Return a trace of points (x, y) in 0..1 of the image, which the published form takes as 0..1 of the crop."""
        make = Trace.published if self.form == "published" else Trace.normalized
        return make(points, **self._options("pool"))

    def _xywh(self, numbers: BoxNumbers) -> BoxNumbers:
        x, y, third, fourth = numbers
        width, height = (third, fourth) if self.box_format == "xywh" else (third - x, fourth - y)
        return x, y, width or 1.0, height or 1.0

    def corners(self, numbers: BoxNumbers) -> BoxNumbers:
        """Return x1, y1, x2, y2 of a box; one without width or height is made one pixel wide or high, as published."""
        x, y, third, fourth = numbers
        right, bottom = (third, fourth) if self.box_format == "xyxy" else (x + third, y + fourth)
        return x, y, right if right != x else x + 1, bottom if bottom != y else y + 1

    def _options(self, *names: str) -> dict[str, Any]:
        """Return those of the options that are not None."""
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}
