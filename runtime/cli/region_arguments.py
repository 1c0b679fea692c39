"""The flags by which `caption` and `video` take regions."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from runtime.errors import PatchcaptionError, RegionError
from runtime.image import open_file
from runtime.regions import (
    Box,
    BoxSet,
    Crop,
    Mask,
    Point,
    Polygon,
    Region,
    RegionRow,
    Trace,
    WholeImage,
)
from runtime.regions.detections import checked_rows
from runtime.regions.inputs.coco import CocoAnnotations, is_dataset
from runtime.regions.inputs.masks import mask_of
from runtime.regions.serialization import parse_json

T = TypeVar("T")

_MAX_BYTES = 1 << 30
"""Of a file of regions, which is read whole; a device would fill the memory."""


def add_region_flags(parser: argparse.ArgumentParser) -> None:
    """Add a flag for each kind; what they name is in ``options.regions``, in order, or None if no flag is given.

    The files that were read are in ``options.region_files``.
    """
    parser.set_defaults(region_files=())
    group = parser.add_argument_group("regions", "any number of each, captioned in the order given; none: the image")

    def add(flag: str, parse: Callable[[str], Region], metavar: str, help: str) -> None:
        group.add_argument(flag, dest="regions", action="append", type=argument_type(parse), metavar=metavar, help=help)

    add("--box", _box, "X1,Y1,X2,Y2", "a box in image pixels")
    add("--boxes", _boxes, '"X1,Y1,X2,Y2 ..."', "several boxes under one caption")
    add("--crop", _crop, "X1,Y1,X2,Y2", "a box in image pixels, cut out and encoded by itself")
    add("--polygon", _polygon, '"X,Y X,Y X,Y ..."', "the inside of a closed line in image pixels")
    group.add_argument(
        "--mask",
        dest="regions",
        action=_ReadRegions,
        read=lambda text: [_mask(text)],
        metavar="PNG",
        help="a mask image of the image's size or aspect ratio; what is neither black nor transparent is inside",
    )
    add("--trace", _trace, '"X,Y X,Y ..."', "a mouse trace in 0..1 of the image")
    add("--trace-pixels", _trace_pixels, '"X,Y X,Y ..."', "a mouse trace in image pixels")
    add("--point", _point, "X,Y", "a point in image pixels")
    group.add_argument("--whole", dest="regions", action="append_const", const=WholeImage(), help="the whole image")
    group.add_argument(
        "--regions",
        action=_ReadRegions,
        read=_regions_in_file,
        metavar="FILE",
        help='JSON: a list of regions, such as {"kind": "box", "xyxy": [X1, Y1, X2, Y2]}, or of boxes, or the '
        "annotations of a data set in COCO's form; - reads stdin",
    )


class _ReadRegions(argparse.Action):
    """Appends the regions in a file to those before, and its name to the files that were read."""

    def __init__(self, *args: Any, read: Callable[[str], list[Any]], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._read = read

    def __call__(self, _: argparse.ArgumentParser, options: argparse.Namespace, value: Any, *__: object) -> None:
        try:
            regions = self._read(value)
        except PatchcaptionError as error:
            raise argparse.ArgumentError(self, str(error)) from None
        options.regions = [*(options.regions or ()), *regions]
        options.region_files = (*options.region_files, Path(value))


def regions_or_whole_image(options: argparse.Namespace, file_name: str | None = None) -> list[Region | RegionRow]:
    """Return the regions that the flags name; the whole image if no flag is given, but not for an empty JSON list.

    Args:
        file_name: the image's, by which data sets know which annotations are its; None where there is none.

    Raises:
        RegionError: a data set does not know the image.
    """
    if options.regions is None:
        return [WholeImage()]
    regions = list[Region | RegionRow]()
    for given in options.regions:
        if isinstance(given, CocoAnnotations):
            regions += given.rows(None) if file_name is None else given.rows_of_file(file_name)
        else:
            regions.append(given)
    return regions


def argument_type(parse: Callable[[str], T]) -> Callable[[str], T]:
    """Return ``parse`` as an argparse type: its message becomes argparse's own one-line error."""

    def parse_argument(text: str) -> T:
        try:
            return parse(text)
        except PatchcaptionError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return parse_argument


def _numbers(text: str, count: int) -> list[float]:
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) != count:
        raise RegionError(f"expected {count} numbers with commas between them, got {text!r}")
    return numbers


def _box(text: str) -> Box:
    x1, y1, x2, y2 = _numbers(text, 4)
    return Box(x1, y1, x2, y2)


def _crop(text: str) -> Crop:
    x1, y1, x2, y2 = _numbers(text, 4)
    return Crop(x1, y1, x2, y2)


def _polygon(text: str) -> Polygon:
    return Polygon(_points(text))


def _boxes(text: str) -> BoxSet:
    return BoxSet([_box(part) for part in text.split()])


def _points(text: str) -> list[list[float]]:
    return [_numbers(part, 2) for part in text.split()]


def _trace(text: str) -> Trace:
    return Trace.normalized(_points(text))


def _trace_pixels(text: str) -> Trace:
    return Trace(_points(text))


def _point(text: str) -> Point:
    return Point(*_numbers(text, 2))


def _mask(text: str) -> Mask:
    try:
        return mask_of(open_file(Path(text)))
    except RegionError as error:
        raise RegionError(f"{text}: {error}") from None


def _read_file(name: str) -> bytes:
    """Return what a file or a pipe, such as a shell makes of <(...), holds, as far as the limit."""
    with Path(name).open("rb") as file:
        return file.read(_MAX_BYTES + 1)


def _regions_in_file(name: str) -> list[RegionRow | CocoAnnotations]:
    try:
        text = sys.stdin.buffer.read(_MAX_BYTES + 1) if name == "-" else _read_file(name)
    except FileNotFoundError:
        raise RegionError(f"{name}: no such file") from None
    except OSError as error:
        raise RegionError(f"{name}: cannot be read: {error.strerror or error}") from None
    except ValueError as error:  # a name with a zero in it, or that no file system encodes
        raise RegionError(f"{name!r}: cannot be read: {error}") from None
    if len(text) > _MAX_BYTES:
        raise RegionError(f"{name}: expected at most {_MAX_BYTES} bytes; patchcaption batch takes larger files")
    try:
        return _regions_of(parse_json(text))
    except RegionError as error:
        raise RegionError(f"{'stdin' if name == '-' else name}: {error}") from None


def _regions_of(data: Any) -> list[RegionRow | CocoAnnotations]:
    """Return the regions of parsed JSON in any form; of a data set, which depend on the image, all of it."""
    if is_dataset(data):
        return [CocoAnnotations(data)]
    return list(checked_rows(data))
