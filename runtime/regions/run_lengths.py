"""COCO's run-length encoding of masks: runs of pixels column by column, outside and inside in turn, outside first."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from runtime.errors import RegionError

MAX_PIXELS = 2**28
"""Largest mask that is decoded: a short document may claim any size, and its pixels take a byte each."""

_MAX_CHARACTERS_PER_RUN = 7
"""Most characters of one run in the compressed form: 7 x 5 bits hold every run of a mask of `MAX_PIXELS`."""


def encode(mask: npt.NDArray[np.bool_]) -> list[int]:
    """Return the lengths of the runs of a mask (H, W).

    Example:
        >>> encode(np.array([[False, True], [True, True]]))  # down the first column, then down the second
        [1, 3]
    """
    pixels = mask.ravel(order="F")
    starts = np.flatnonzero(pixels[1:] != pixels[:-1]) + 1
    counts: list[int] = np.diff(starts, prepend=0, append=pixels.size).tolist()
    return [0, *counts] if pixels[0] else counts


def decode(counts: Sequence[int], height: int, width: int) -> npt.NDArray[np.bool_]:
    """Return the mask (H, W) of runs, after checking that they fill it: nothing is allocated for runs that do not.

    Raises:
        RegionError: a run is negative, the runs do not sum to the mask's pixels, or these are more than `MAX_PIXELS`.

    Example:
        >>> decode([1, 3], height=2, width=2)
        array([[False,  True],
               [ True,  True]])
    """
    if height * width > MAX_PIXELS:
        raise RegionError(f"expected at most {MAX_PIXELS} pixels, got {width} x {height}")
    if min(counts, default=0) < 0:
        raise RegionError(f"expected runs of at least 0 pixels, got {min(counts)}")
    if sum(counts) != height * width:
        raise RegionError(f"expected runs that sum to {height * width} ({width} x {height} pixels), got {sum(counts)}")
    is_inside = np.arange(len(counts)) % 2 == 1
    return np.ascontiguousarray(np.repeat(is_inside, counts).reshape(width, height).T)


def parse_compressed(text: str) -> list[int]:
    """Return the runs of COCO's compressed string, as pycocotools writes it.

    Each character holds 5 bits, lowest first, and a bit that says whether the run goes on; from the fourth run on it is
    the difference to the run before the last.

    Raises:
        RegionError: the text is not such a string.

    Example:
        >>> parse_compressed("13")
        [1, 3]
    """
    counts: list[int] = []
    value = shift = 0
    for position, character in enumerate(text):
        bits = ord(character) - 48
        if not 0 <= bits < 64 or shift >= 5 * _MAX_CHARACTERS_PER_RUN:
            raise RegionError(f"expected COCO's compressed runs, got {character!r} at character {position}")
        value |= (bits & 0x1F) << shift
        shift += 5
        if bits & 0x20:
            continue
        if bits & 0x10:
            value -= 1 << shift
        counts.append(value + counts[-2] if len(counts) > 2 else value)
        value = shift = 0
    if shift:
        raise RegionError("expected COCO's compressed runs, got a string that ends within a run")
    return counts
