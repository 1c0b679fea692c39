"""Captions drawn on the image they describe."""

from __future__ import annotations

import colorsys
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageFont

from runtime.image import ImageSource, open_image
from runtime.options import Channels, check_channels
from runtime.regions.outline import (
    BoxesOutline,
    MaskOutline,
    Outline,
    Points,
    PolygonOutline,
    PolygonsOutline,
    PolylineOutline,
    outline_of,
)
from runtime.results import Caption

_TINT_OPACITY = 0.25
"""Opacity of a mask's colour over the pixels in it."""

Colour: TypeAlias = tuple[int, int, int]
Corners: TypeAlias = tuple[float, float, float, float]
"""A box (x1, y1, x2, y2) in pixels of the image."""


def draw_captions(image: ImageSource, captions: Sequence[Caption], *, channels: Channels = "rgb") -> Image.Image:
    """Return the image (RGB) with every region outlined in its own colour and its caption beside it.

    A region without an outline in image pixels (the whole image, patches, the published forms, classes of your own
    without an ``outline`` method) has its caption at the bottom left.

    Args:
        image: what was captioned, in any form that `Captioner.encode` takes.
        captions: captions of its regions, from `Captioner.describe`.
        channels: the order of the channels of an array or a tensor; "bgr" for those of OpenCV.

    Example:
        >>> draw_captions(scene, captioner.caption(scene, [Box(276, 174, 507, 399)])).save("out/described.png")
    """
    check_channels(channels)
    picture = open_image(image, channels)
    line_width = max(1, round(min(picture.size) / 240))
    colours = list(islice(_colours(), len(captions)))
    outlines = [outline_of(caption.region, picture.size) for caption in captions]
    for outline, colour in zip(outlines, colours, strict=True):
        if isinstance(outline, MaskOutline):
            picture = _tint(picture, outline.array, 2 * line_width, colour)
    pen = ImageDraw.Draw(picture)
    font = ImageFont.load_default(size=max(10, round(min(picture.size) / 30)))
    bounds = [
        _draw_outline(pen, outline, picture.size, line_width, colour)
        for outline, colour in zip(outlines, colours, strict=True)
    ]
    labels: list[Corners] = []
    for caption, around, colour in zip(captions, bounds, colours, strict=True):
        labels.append(_draw_label(pen, caption.text, around, labels, picture.size, font, colour))
    return picture


def _colours() -> Iterator[Colour]:
    """Yield colours that differ from their neighbours, without end: golden-angle steps around the colour wheel."""
    hue = 0.58
    while True:
        red, green, blue = colorsys.hsv_to_rgb(hue % 1, 0.85, 0.95)
        yield round(red * 255), round(green * 255), round(blue * 255)
        hue += 0.381966


def _tint(picture: Image.Image, mask: npt.NDArray[np.bool_], line_width: int, colour: Colour) -> Image.Image:
    """Return the picture with a tint over the mask and a line around it."""
    inside = Image.fromarray(mask.astype(np.uint8) * 255)
    border = ImageChops.subtract(inside.filter(ImageFilter.MaxFilter(2 * line_width + 1)), inside)
    opacity = inside.point(lambda value: int(value * _TINT_OPACITY))
    tinted = Image.composite(Image.new("RGB", picture.size, colour), picture, opacity)
    tinted.paste(colour, mask=border)
    return tinted


def _draw_outline(
    pen: ImageDraw.ImageDraw, outline: Outline | None, image_wh: tuple[int, int], line_width: int, colour: Colour
) -> Corners:
    """Draw an outline; return the box around it, where the caption belongs. The pixels of masks are tinted before."""
    match outline:
        case BoxesOutline(boxes):
            return _draw_boxes(pen, boxes, image_wh, 2 * line_width, colour)
        case PolygonOutline(points):
            pen.polygon(points, outline=colour, width=2 * line_width)
            return _bounds(np.array(points))
        case PolygonsOutline(polygons):
            for points in polygons:
                pen.polygon(points, outline=colour, width=2 * line_width)
            return _bounds(np.concatenate([np.array(points) for points in polygons]))
        case PolylineOutline(points):
            return _draw_polyline(pen, points, line_width, colour)
        case MaskOutline(array):
            return _bounds(np.argwhere(array)[:, ::-1])
        case None:
            return (0, image_wh[1], 0, image_wh[1])


def _draw_boxes(
    pen: ImageDraw.ImageDraw, boxes: Sequence[Corners], image_wh: tuple[int, int], line_width: int, colour: Colour
) -> Corners:
    corners = np.array(boxes).reshape(-1, 2, 2).clip(0, np.array(image_wh) - 1)
    for (left, top), (right, bottom) in corners:
        pen.rectangle((left, top, right, bottom), outline=colour, width=line_width)
    return _bounds(corners.reshape(-1, 2))


def _draw_polyline(pen: ImageDraw.ImageDraw, points: Points, line_width: int, colour: Colour) -> Corners:
    pen.line(points, fill=colour, width=line_width, joint="curve")
    for x, y in points:
        dot = (x - line_width, y - line_width, x + line_width, y + line_width)
        pen.ellipse(dot, fill=colour, outline="white")
    return _bounds(np.array(points))


def _bounds(points: npt.NDArray[np.generic]) -> Corners:
    """Return the box around points (P, 2)."""
    (left, top), (right, bottom) = points.min(0), points.max(0)
    return float(left), float(top), float(right), float(bottom)


def _draw_label(
    pen: ImageDraw.ImageDraw,
    text: str,
    around: Corners,
    labels: Sequence[Corners],
    image_wh: tuple[int, int],
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
    colour: Colour,
) -> Corners:
    """Draw a caption above, below or inside a box, where it covers no other label and stays in the picture.

    Returns:
        its corners.
    """
    left, top, right, bottom = pen.textbbox((0, 0), text, font=font)
    padding = 3
    width, height = right - left + 2 * padding, bottom - top + 2 * padding
    x = min(max(around[0], 0), max(image_wh[0] - width, 0))
    lowest = max(image_wh[1] - height, 0)
    preferred = [around[1] - height, around[3] + 1, around[1] + 1, *np.arange(0, lowest + 1, height)]
    possible = [y for y in preferred if 0 <= y <= lowest]
    free = [y for y in possible if not any(_overlap((x, y, x + width, y + height), label) for label in labels)]
    y = (free or possible or [0])[0]
    pen.rectangle((x, y, x + width, y + height), fill=colour)
    is_dark = sum(colour) < 3 * 140
    pen.text((x + padding - left, y + padding - top), text, font=font, fill="white" if is_dark else "black")
    return (x, y, x + width, y + height)


def _overlap(one: Corners, other: Corners) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]
