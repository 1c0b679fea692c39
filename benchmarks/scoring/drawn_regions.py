"""Draws regions on their images as the published evaluation does, for metrics that see images.

Of a box it draws the outline, of a set each box's, of a trace each point; of a whole image nothing. What is drawn is
saved as JPEG before it is looked at (`through_jpeg`).
"""

from __future__ import annotations

import io
from typing import TypeAlias

from PIL import Image, ImageDraw

from runtime import Box, BoxSet, ImageError, Region, RegionError, Trace, WholeImage
from runtime.regions import PublishedBox, PublishedTrace

_LONGEST_JPEG = 65500
"""The longest side that libjpeg writes, in pixels."""
Corners: TypeAlias = tuple[float, float, float, float]

COLOUR = (255, 0, 0)
"""Red, of boxes and of points."""
LINE_WIDTH = 2
"""Of a box's outline, in pixels, inside its corners."""
POINT_RADIUS = 3
"""In pixels."""
POINT_ALPHA = 122
"""Of 255; points over each other are no less transparent."""


def draw_region(image: Image.Image, region: Region) -> Image.Image:
    """Return an RGB image with a region drawn on it; the image itself for a whole image.

    Raises:
        RegionError: the region is of another kind, or in pixels of the backbone's input.
    """
    match region:
        case WholeImage():
            return image
        case Trace() | PublishedTrace():
            return _draw_points(image, _points(region, image.size))
        case BoxSet(boxes):
            return _draw_boxes(image, [_corners(box) for box in boxes])
    return _draw_boxes(image, [_corners(region)])


def cut_out(image: Image.Image, region: Region) -> Image.Image | None:
    """Return the part of an image that a box covers, in whole pixels and at least one; None for other regions.

    Raises:
        RegionError: the box is in pixels of the backbone's input.
    """
    if not isinstance(region, (Box, PublishedBox)):
        return None
    x1, y1, x2, y2 = _corners(region)
    left, right = _span(x1, x2, image.width)
    top, bottom = _span(y1, y2, image.height)
    return image.crop((left, top, right, bottom))


def through_jpeg(image: Image.Image) -> Image.Image:
    """Return an RGB image as it is after it was saved as JPEG, with Pillow's own settings: quality 75, 4:2:0.

    Raises:
        ImageError: it is larger than a JPEG can be.
    """
    if max(image.size) > _LONGEST_JPEG:
        raise ImageError(
            f"image: expected at most {_LONGEST_JPEG} pixels a side, as it is scored as JPEG, got {image.width} x "
            f"{image.height}; scale it down, and its regions"
        )
    file = io.BytesIO()
    image.save(file, "JPEG")
    with Image.open(file) as saved:
        return saved.convert("RGB")


def _corners(region: Region) -> Corners:
    """Return the corners of a box in image pixels."""
    if isinstance(region, Box):
        return region.x1, region.y1, region.x2, region.y2
    if isinstance(region, PublishedBox) and region.frame == "image":
        return region.x, region.y, region.x + region.width, region.y + region.height
    raise RegionError(
        f"{region}: it cannot be drawn; expected a box in image pixels, a set of them, a trace or the whole image"
    )


def _points(trace: Trace | PublishedTrace, image_wh: tuple[int, int]) -> list[tuple[float, float]]:
    """Return the points of a trace that lie on its image, in pixels; published ones are in 0..1 of it."""
    width, height = image_wh
    user_trace = Trace.normalized(trace.points) if isinstance(trace, PublishedTrace) else trace
    return [(x, y) for x, y in user_trace.pixels(image_wh).tolist() if 0 <= x <= width and 0 <= y <= height]


def _draw_boxes(image: Image.Image, boxes: list[Corners]) -> Image.Image:
    drawn = image.copy()
    pen = ImageDraw.Draw(drawn)
    for x1, y1, x2, y2 in boxes:
        # What lies far outside is cut off where it is out of sight: Pillow would walk along all of it.
        left, right = (min(max(x, -2 * LINE_WIDTH), image.width + 2 * LINE_WIDTH) for x in (x1, x2))
        top, bottom = (min(max(y, -2 * LINE_WIDTH), image.height + 2 * LINE_WIDTH) for y in (y1, y2))
        pen.rectangle((left, top, right, bottom), outline=COLOUR, width=LINE_WIDTH)
    return drawn


def _draw_points(image: Image.Image, points: list[tuple[float, float]]) -> Image.Image:
    layer = Image.new("RGBA", image.size)
    pen, colour = ImageDraw.Draw(layer), (*COLOUR, POINT_ALPHA)
    for x, y in points:
        column, row = int(x), int(y)
        disc = (column - POINT_RADIUS, row - POINT_RADIUS, column + POINT_RADIUS, row + POINT_RADIUS)
        pen.ellipse(disc, fill=colour, outline=colour)
    return Image.alpha_composite(image.convert("RGBA"), layer).convert("RGB")


def _span(start: float, end: float, length: int) -> tuple[int, int]:
    """Return the first pixel that is cut out along a side of that length, and the one after the last."""
    first = min(max(0, round(start)), length - 1)
    return first, max(first + 1, min(length, round(end)))
