"""Outlines of regions in image pixels, for drawing.

A kind with a place on the image has `outline(image_wh)`; one without the method, or one that returns None, has none.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, TypeAlias, runtime_checkable

import numpy as np
import numpy.typing as npt

Points: TypeAlias = tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class BoxesOutline:
    """One or more rectangles, each by its corners (x1, y1, x2, y2)."""

    corners: tuple[tuple[float, float, float, float], ...]


@dataclass(frozen=True)
class PolygonOutline:
    """A closed line through points (x, y); the last joins the first."""

    points: Points


@dataclass(frozen=True)
class PolygonsOutline:
    """Several closed lines, each through points (x, y)."""

    polygons: tuple[Points, ...]


@dataclass(frozen=True)
class PolylineOutline:
    """An open line through points (x, y), each of which is marked; a single point is a mark without a line."""

    points: Points


@dataclass(frozen=True, eq=False)
class MaskOutline:
    """The pixels of a mask (H, W) of the image's size."""

    array: npt.NDArray[np.bool_]


Outline: TypeAlias = "BoxesOutline | PolygonOutline | PolygonsOutline | PolylineOutline | MaskOutline"


@runtime_checkable
class Outlined(Protocol):
    """A region that has a place on its image."""

    def outline(self, image_wh: tuple[int, int], /) -> Outline | None:
        """Return the region's outline on an image of that size in pixels, or None if it has no place there."""
        ...


def outline_of(region: object, image_wh: tuple[int, int]) -> Outline | None:
    """Return the outline of a region, or None for kinds without one, such as patches and the published forms.

    Example:
        >>> outline_of(Trace.normalized([(0.5, 0.25)]), (640, 480))
        PolylineOutline(points=((320.0, 120.0),))
        >>> outline_of(WholeImage(), (640, 480)) is None
        True
    """
    return region.outline(image_wh) if isinstance(region, Outlined) else None
