"""Captions drawn on the image they describe."""

from __future__ import annotations

import colorsys
from collections.abc import Iterator, Sequence

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageFont

from runtime.image import ImageSource, open_image
from runtime.regions import Box, BoxSet, Crop, Mask, Point, Polygon, Region, Trace
from runtime.results import Caption

_TINT = 0.25
"""How much of a mask's colour covers the pixels in it."""

Corners = tuple[float, float, float, float]


def draw_captions(image: ImageSource, captions: Sequence[Caption]) -> Image.Image:
    """The image (RGB) with every region outlined in its own colour and its caption beside it.

    Captions of whole images stand at the bottom left. Of region kinds that have no place in image pixels (patches, the
    published forms) only the caption is drawn.

    Args:
        image: what was captioned, in any form that `Captioner.encode` takes.
        captions: captions of its regions, from `Captioner.describe`.

    Example:
        >>> draw_captions(scene, captioner.caption(scene, [Box(276, 174, 507, 399)])).save("out/described.png")
    """
    picture = open_image(image)
    unit = max(1, round(min(picture.size) / 240))  # line width, in pixels
    for caption, colour in zip(captions, _colours(), strict=False):
        if isinstance(caption.region, Mask):
            picture = _tinted(picture, caption.region, 2 * unit, colour)
    pen = ImageDraw.Draw(picture)
    font = ImageFont.load_default(size=max(10, round(min(picture.size) / 30)))
    places = []
    for caption, colour in zip(captions, _colours(), strict=False):
        places.append(_outline(pen, caption.region, picture.size, unit, colour))
    taken: list[Corners] = []
    for caption, place, colour in zip(captions, places, _colours(), strict=False):
        taken.append(_label(pen, caption.text, place, taken, picture.size, font, colour))
    return picture


def _colours() -> Iterator[tuple[int, int, int]]:
    """Colours that differ from their neighbours, without end: steps of the golden angle around the colour wheel."""
    hue = 0.58
    while True:
        red, green, blue = colorsys.hsv_to_rgb(hue % 1, 0.85, 0.95)
        yield round(red * 255), round(green * 255), round(blue * 255)
        hue += 0.381966


def _tinted(picture: Image.Image, mask: Mask, unit: int, colour: tuple[int, int, int]) -> Image.Image:
    """The picture with a tint over the mask and a line around it."""
    inside = Image.fromarray(mask.array.astype(np.uint8) * 255)
    around = ImageChops.subtract(inside.filter(ImageFilter.MaxFilter(2 * unit + 1)), inside)
    tinted = Image.composite(Image.new("RGB", picture.size, colour), picture, inside.point(lambda v: int(v * _TINT)))
    tinted.paste(colour, mask=around)
    return tinted


def _outline(
    pen: ImageDraw.ImageDraw, region: Region | None, image_wh: tuple[int, int], unit: int, colour: tuple[int, int, int]
) -> Corners:
    """Draws a region's shape; returns the box around it, where its caption belongs."""
    boxes = [one for one in (region.boxes if isinstance(region, BoxSet) else [region]) if isinstance(one, (Box, Crop))]
    if boxes:
        return _draw_boxes(pen, boxes, image_wh, unit, colour)
    if isinstance(region, Polygon):
        pen.polygon(region.points, outline=colour, width=2 * unit)
        return _bounds(np.array(region.points))
    if isinstance(region, Mask):
        return _bounds(np.argwhere(region.array)[:, ::-1])
    if isinstance(region, (Trace, Point)):
        trace = Trace([(region.x, region.y)]) if isinstance(region, Point) else region
        points = trace.pixels(image_wh)
        pen.line([(x, y) for x, y in points], fill=colour, width=unit, joint="curve")
        for x, y in points:
            pen.ellipse((x - unit, y - unit, x + unit, y + unit), fill=colour, outline="white")
        return _bounds(points)
    return (0, image_wh[1], 0, image_wh[1])


def _draw_boxes(
    pen: ImageDraw.ImageDraw,
    boxes: Sequence[Box | Crop],
    image_wh: tuple[int, int],
    unit: int,
    colour: tuple[int, int, int],
) -> Corners:
    limit = np.array(image_wh) - 1
    corners = np.clip([[(box.x1, box.y1), (box.x2, box.y2)] for box in boxes], 0, limit)
    for (left, top), (right, bottom) in corners:
        pen.rectangle((left, top, right, bottom), outline=colour, width=2 * unit)
    return _bounds(corners.reshape(-1, 2))


def _bounds(points: np.ndarray) -> Corners:
    (left, top), (right, bottom) = points.min(0), points.max(0)
    return float(left), float(top), float(right), float(bottom)


def _label(
    pen: ImageDraw.ImageDraw,
    text: str,
    around: Corners,
    taken: Sequence[Corners],
    image_wh: tuple[int, int],
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
    colour: tuple[int, int, int],
) -> Corners:
    """Writes a caption above, below or inside a box, wherever it covers no other caption and stays in the picture."""
    left, top, right, bottom = pen.textbbox((0, 0), text, font=font)
    pad = 3
    width, height = right - left + 2 * pad, bottom - top + 2 * pad
    x = min(max(around[0], 0), max(image_wh[0] - width, 0))
    lowest = max(image_wh[1] - height, 0)
    wished = [around[1] - height, around[3] + 1, around[1] + 1, *np.arange(0, lowest + 1, height)]
    heights = [y for y in wished if 0 <= y <= lowest]
    free = [y for y in heights if not any(_overlap((x, y, x + width, y + height), other) for other in taken)]
    y = (free or heights or [0])[0]
    pen.rectangle((x, y, x + width, y + height), fill=colour)
    dark = sum(colour) < 3 * 140
    pen.text((x + pad - left, y + pad - top), text, font=font, fill="white" if dark else "black")
    return (x, y, x + width, y + height)


def _overlap(one: Corners, other: Corners) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]
