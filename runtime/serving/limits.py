"""What may be asked of a server at a time, checked before it costs anything."""

from __future__ import annotations

import io
from dataclasses import dataclass, fields
from typing import Any

from runtime.errors import PatchcaptionError, RegionError
from runtime.image import read_size
from runtime.options import check_number
from runtime.regions import Crop
from runtime.regions.detections import as_rows
from runtime.regions.rows import RegionRow
from runtime.regions.serialization import parse_json

WHOLE_IMAGE = [{"kind": "whole_image"}]
"""The regions of a request that names none."""
_MAX_DEPTH = 32
"""Of lists and objects within each other: an annotation file has seven."""
_MAX_COORDINATES = 2**16
"""Numbers in the lists of a request's regions, run lengths aside: those of 16,384 boxes, or of a trace of hours."""
_UNTOLD = 10**15
"""A count from which on its digits tell nothing."""
_LONGEST = 1000
"""Characters of an error's line: what a client gave is shown in it, and may be long."""


class OverLimitError(PatchcaptionError):
    """More than a server takes of one request."""


@dataclass(frozen=True)
class InputLimits:
    """How much a request may ask for; what is more is refused before it costs anything.

    Attributes:
        bytes: of a request.
        pixels: of an image, read from its header before it is decoded; masks may have four times as many together.
        regions: of a request, times the beams of each.
        crops: of a request; each is a backbone pass of its own, as is each region that AlphaCLIP is shown by itself.

    Raises:
        OptionError: one is no number from 1 on.
    """

    bytes: int = 32 * 2**20
    pixels: int = 50_000_000
    regions: int = 1024
    crops: int = 16

    def __post_init__(self) -> None:
        for field in fields(self):
            is_time = field.name.endswith("seconds")
            check_number(field.name, getattr(self, field.name), 0.001 if is_time else 1, whole=not is_time)

    @property
    def mask_pixels(self) -> int:
        """Of the masks of a request, together."""
        return 4 * self.pixels


def count_pixels(image: bytes, limit: int) -> int:
    """Return how many pixels an encoded image has, by its header.

    Raises:
        OverLimitError: more than the limit.
        ImageError: it has no header that can be read.
    """
    width, height = read_size(io.BytesIO(image), "image")
    if width * height > limit:
        raise OverLimitError(f"image: expected at most {limit} pixels, got {width} x {height}")
    return width * height


def read_bounded_json(name: str, text: str | bytes) -> Any:
    """Return the values of a JSON text that a client gave.

    Args:
        name: what errors call it.

    Raises:
        RegionError: it is not JSON, or nested so deeply that whoever reads it, or shows it in a message, would run out
            of stack.
    """
    value = parse_json(text, name)
    level = [value]
    for _ in range(_MAX_DEPTH + 1):
        entries = (one.values() if isinstance(one, dict) else one for one in level if isinstance(one, (dict, list)))
        level = [entry for each in entries for entry in each if isinstance(entry, (dict, list))]
        if not level:
            return value
    raise RegionError(f"{name}: expected JSON, got some that is nested too deeply")


def rows_within(
    limits: InputLimits, regions: Any, image_wh: tuple[int, int], beams: int, encodes_each: bool = False
) -> list[RegionRow]:
    """Return the regions of one image, after those checks that need no work and before those that do.

    Args:
        regions: a JSON value: the regions of one image in any form.
        beams: of each region.
        encodes_each: whether each region is a backbone pass of its own (`Pipeline.encodes_each_region`).

    Raises:
        OverLimitError: there are more than the limits allow.
        RegionError: what is given is in no form of regions.
    """
    _check_count("regions", len(regions) if isinstance(regions, list) else 1, limits.regions)
    coordinates, mask_pixels = work_of(regions)
    _check_count("coordinates", coordinates, _MAX_COORDINATES)
    _check_count("pixels of masks", mask_pixels, limits.mask_pixels)
    rows = as_rows(regions, image_wh)
    _check_count("regions times beams", len(rows) * beams, limits.regions)
    crops = len(rows) if encodes_each else sum(isinstance(row.region, Crop) for row in rows)
    _check_count("regions that are encoded by themselves" if encodes_each else "crops", crops, limits.crops)
    return rows


def work_of(value: Any) -> tuple[int, int]:
    """Return how many coordinates a JSON value has, and how many pixels its masks: a few run lengths may be a gigabyte.

    What a polygon takes grows with its points times the rows that it covers.
    """
    coordinates, mask_pixels, waiting = 0, 0, [value]
    while waiting:
        one = waiting.pop()
        if isinstance(one, dict):
            mask_pixels += _size_of(one.get("size")) if "counts" in one else 0
            waiting += (entry for name, entry in one.items() if name != "counts")
        elif isinstance(one, list):
            nested = [entry for entry in one if isinstance(entry, (dict, list))]
            coordinates += len(one) - len(nested)
            waiting += nested
    return coordinates, mask_pixels


def line_of(error: BaseException) -> str:
    """Return what an error says on one line of bounded length."""
    line = " ".join(str(error).split())
    return line if len(line) <= _LONGEST else f"{line[:_LONGEST]}..."


def _check_count(name: str, count: int, limit: int) -> None:
    if count > limit:
        got = count if count < _UNTOLD else f"more than {_UNTOLD}"
        raise OverLimitError(f"regions: expected at most {limit} {name}, got {got}")


def _size_of(size: Any) -> int:
    is_size = isinstance(size, list) and len(size) == 2 and all(isinstance(side, (int, float)) for side in size)
    try:
        return max(0, int(size[0] * size[1])) if is_size else 0
    except (ValueError, OverflowError):  # of what is not finite, which is no mask
        return 0
