"""Regions on the command line."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np

from runtime.errors import PatchcaptionError, RegionError
from runtime.image import read_file
from runtime.regions import Box, BoxSet, Crop, Mask, Point, Polygon, Trace, WholeImage

T = TypeVar("T")


def add_region_flags(parser: argparse.ArgumentParser) -> None:
    """A flag for each kind; what they name is in ``options.regions``, in order, or None."""
    regions = parser.add_argument_group("regions", "any number of each, captioned in the order given; none: the image")

    def region(flag: str, kind: Callable[[str], T], metavar: str, help: str) -> None:
        regions.add_argument(flag, dest="regions", action="append", type=parsed(kind), metavar=metavar, help=help)

    region("--box", _box, "X1,Y1,X2,Y2", "a box in image pixels")
    region("--boxes", _boxes, '"X1,Y1,X2,Y2 ..."', "several boxes under one caption")
    region("--crop", _crop, "X1,Y1,X2,Y2", "a box in image pixels, cut out and encoded by itself")
    region("--polygon", _polygon, '"X,Y X,Y X,Y ..."', "the inside of a closed line in image pixels")
    region("--mask", _mask, "PNG", "a mask image of the image's size; what is neither black nor transparent is inside")
    region("--trace", _trace, '"X,Y X,Y ..."', "a mouse trace in shares of the image, 0 to 1")
    region("--trace-pixels", _trace_pixels, '"X,Y X,Y ..."', "a mouse trace in image pixels")
    region("--point", _point, "X,Y", "a point in image pixels")
    regions.add_argument("--whole", dest="regions", action="append_const", const=WholeImage(), help="the whole image")


def parsed(kind: Callable[[str], T]) -> Callable[[str], T]:
    """``kind`` as an argparse type: its message becomes argparse's own one-line error."""

    def parse(text: str) -> T:
        try:
            return kind(text)
        except PatchcaptionError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return parse


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
    rgba = np.asarray(read_file(Path(text)).convert("RGBA"))
    try:
        return Mask(rgba[:, :, :3].any(axis=2) & (rgba[:, :, 3] > 0))
    except RegionError as error:
        raise RegionError(f"{text}: {error}") from None
