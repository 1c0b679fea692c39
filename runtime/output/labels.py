"""Where captions go in a picture: wrapped, near their regions, and not over each other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Corners: TypeAlias = tuple[float, float, float, float]
"""A box (x1, y1, x2, y2) in pixels of the picture."""

_STEPS = 48
"""Places along each side of the picture that are tried where none beside the region is free."""


@dataclass(frozen=True)
class LabelPlace:
    """Where a label is.

    Attributes:
        corners: the label's.
        is_free: whether it covers no other label.
        leader: from the label to its region, where it is not beside it.
    """

    corners: Corners
    is_free: bool
    leader: tuple[tuple[float, float], tuple[float, float]] | None


def wrap(text: str, width: float, measure: Callable[[str], float], most_lines: int) -> list[str]:
    """Return a text in lines of at most that width, broken between words, or within one that is too long by itself.

    Args:
        measure: the width of a text.
        most_lines: what is more is cut off, and ends in an ellipsis.
    """
    lines = [""]
    for word in text.split():
        extended = f"{lines[-1]} {word}".strip()
        if measure(extended) <= width:
            lines[-1] = extended
            continue
        pieces = _pieces(word, width, measure)
        lines = [*lines, *pieces] if lines[-1] else pieces
        if len(lines) > most_lines:
            break
    if len(lines) > most_lines:
        last = lines[most_lines - 1]
        while last and measure(f"{last}…") > width:
            last = last[:-1]
        lines = [*lines[: most_lines - 1], f"{last}…"]
    return lines


def place_labels(
    sizes: Sequence[tuple[float, float]], regions: Sequence[Corners], wh: tuple[int, int]
) -> list[LabelPlace]:
    """Return where labels go, in order: beside its region, or as near as nothing is in the way.

    Args:
        sizes: the width and height of each label.
        regions: the box around each region.
        wh: the picture's width and height.
    """
    places: list[LabelPlace] = []
    for size, region in zip(sizes, regions, strict=True):
        places.append(_place(size, region, np.array([place.corners for place in places]).reshape(-1, 4), wh))
    return places


def _place(
    size: tuple[float, float], region: Corners, taken: npt.NDArray[np.float64], wh: tuple[int, int]
) -> LabelPlace:
    width, height = size
    beside = _beside(size, region, wh)
    free = [place for place in beside if not _covers(np.array([place]), taken)[0]]
    if free:
        return LabelPlace(free[0], is_free=True, leader=None)
    x = np.linspace(0, max(wh[0] - width, 0), _STEPS)
    y = np.linspace(0, max(wh[1] - height, 0), _STEPS)
    left, top = (axis.ravel() for axis in np.meshgrid(x, y))
    places = np.stack([left, top, left + width, top + height], axis=1)
    gaps = _gaps(places, region)
    free_gaps = np.where(_covers(places, taken), np.inf, gaps)
    best = int(free_gaps.argmin())
    if not np.isfinite(free_gaps[best]):
        return LabelPlace(beside[0] if beside else _tuple(places[0]), is_free=False, leader=None)
    corners = _tuple(places[best])
    is_near = gaps[best] <= height / 4
    return LabelPlace(corners, is_free=True, leader=None if is_near else _leader(corners, region))


def _beside(size: tuple[float, float], region: Corners, wh: tuple[int, int]) -> list[Corners]:
    """Return the places at a region that lie in the picture, the best first: above, below, inside, at its sides."""
    (width, height), (left, top, right, bottom) = size, region
    lefts = [min(max(x, 0), max(wh[0] - width, 0)) for x in (left, right - width)]
    tops = (top - height, bottom + 1, top + 1, bottom - height - 1)
    corners = [(x, y) for x in lefts for y in tops]
    corners += [(x, min(max(top, 0), max(wh[1] - height, 0))) for x in (right + 1, left - width - 1)]
    return [
        (x, y, x + width, y + height)
        for x, y in corners
        if 0 <= y <= max(wh[1] - height, 0) and 0 <= x <= max(wh[0] - width, 0)
    ]


def _covers(places: npt.NDArray[np.float64], taken: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
    """Return for each of P places (P, 4) whether it lies over one of those that are taken (K, 4)."""
    one, other = places[:, None], taken[None]
    across = (one[..., 0] < other[..., 2]) & (other[..., 0] < one[..., 2])
    down = (one[..., 1] < other[..., 3]) & (other[..., 1] < one[..., 3])
    return np.asarray((across & down).any(axis=1))


def _gaps(places: npt.NDArray[np.float64], region: Corners) -> npt.NDArray[np.float64]:
    """Return how far each of P places (P, 4) is from a region."""
    left, top, right, bottom = region
    across = np.maximum(np.maximum(left - places[:, 2], places[:, 0] - right), 0)
    down = np.maximum(np.maximum(top - places[:, 3], places[:, 1] - bottom), 0)
    return np.hypot(across, down)


def _leader(label: Corners, region: Corners) -> tuple[tuple[float, float], tuple[float, float]]:
    """Return the shortest line from a label to its region."""
    (from_x, to_x), (from_y, to_y) = (_nearest(label[axis::2], region[axis::2]) for axis in (0, 1))
    return (from_x, from_y), (to_x, to_y)


def _nearest(one: Sequence[float], other: Sequence[float]) -> tuple[float, float]:
    """Return the points of two intervals that are nearest to each other; where both have some in common, its middle."""
    low, high = max(one[0], other[0]), min(one[1], other[1])
    if low <= high:
        return (low + high) / 2, (low + high) / 2
    return (one[1], other[0]) if one[1] < other[0] else (one[0], other[1])


def _pieces(word: str, width: float, measure: Callable[[str], float]) -> list[str]:
    pieces = [""]
    for character in word:
        if pieces[-1] and measure(pieces[-1] + character) > width:
            pieces.append("")
        pieces[-1] += character
    return pieces


def _tuple(corners: npt.NDArray[np.float64]) -> Corners:
    left, top, right, bottom = corners.tolist()
    return left, top, right, bottom
