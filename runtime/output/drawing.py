"""Captions drawn on the image they describe."""

from __future__ import annotations

import colorsys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageChops, ImageDraw, ImageFilter

from runtime.errors import PatchcaptionError
from runtime.image import ImageSource, open_image
from runtime.options import Channels, check_channels
from runtime.output.fonts import Font, FontChoice, FontFile
from runtime.output.labels import Corners, place_labels, wrap
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

_PADDING = 3
"""Around a label's text, and between its lines, in pixels."""
_TALL = "Ågjpqy|"
"""Letters that reach as high and as low as any."""
_FEW = 4
"""Up to so many captions have the picture's width for a line, more have half of it."""
_SMALLEST_FONT = 8
"""In pixels; smaller letters cannot be read."""
_MOST_CHARACTERS = 1000
"""Of a caption; measuring lines of much more takes minutes. The rest is cut off, and an ellipsis drawn for it."""

Colour: TypeAlias = tuple[int, int, int]


def draw_captions(
    image: ImageSource, captions: Sequence[Caption], *, channels: Channels = "rgb", font: FontFile = None
) -> Image.Image:
    """Return the image (RGB) with every region outlined in its own colour and its caption beside it.

    Captions are wrapped, and smaller where there are many; one that has no room beside its region is joined to it by a
    line. A region without an outline in image pixels (the whole image, patches, the published forms, classes of your
    own without an ``outline`` method) has its caption at the bottom left.

    Args:
        image: what was captioned, in any form that `Captioner.encode` takes.
        captions: captions of its regions, from `Captioner.describe`.
        channels: the order of the channels of an array or a tensor; "bgr" for those of OpenCV.
        font: a font file; None for Pillow's own. Captions with characters that it lacks are in one of the machine's
            fonts that has them.

    Raises:
        ImageError: the image cannot be read.
        PatchcaptionError: ``captions`` is no list of captions, ``font`` no font file, or ``channels`` no such word.

    Example:
        >>> draw_captions(scene, captioner.caption(scene, [Box(276, 174, 507, 399)])).save("out/described.png")
    """
    check_channels(channels)
    picture = open_image(image, channels)
    if not isinstance(captions, Sequence) or not all(isinstance(caption, Caption) for caption in captions):
        raise PatchcaptionError(
            f"captions: expected a list of captions of one image's regions, got {_kind_of(captions)}"
        )
    line_width = max(1, round(min(picture.size) / 240))
    colours = list(islice(_colours(), len(captions)))
    outlines = [outline_of(caption.region, picture.size) for caption in captions]
    for outline, colour in zip(outlines, colours, strict=True):
        if isinstance(outline, MaskOutline):
            picture = _tint(picture, outline.array, 2 * line_width, colour)
    pen = ImageDraw.Draw(picture)
    bounds = [
        _draw_outline(pen, outline, picture.size, line_width, colour)
        for outline, colour in zip(outlines, colours, strict=True)
    ]
    _draw_labels(pen, [caption.text for caption in captions], bounds, picture.size, font, colours)
    return picture


def _kind_of(captions: object) -> str:
    if not isinstance(captions, (list, tuple)):
        return type(captions).__name__
    return f"a list with {next(type(one).__name__ for one in captions if not isinstance(one, Caption))} in it"


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


@dataclass(frozen=True)
class _Label:
    """A caption in lines, with the room around it.

    Attributes:
        wh: its width and height, padding included.
        line_height: from one line to the next.
    """

    lines: list[str]
    font: Font
    wh: tuple[float, float]
    line_height: float


def _draw_labels(
    pen: ImageDraw.ImageDraw,
    texts: Sequence[str],
    bounds: Sequence[Corners],
    image_wh: tuple[int, int],
    font: FontFile,
    colours: Sequence[Colour],
) -> None:
    """Draw captions as large as all of them have room."""
    largest = max(10, round(min(image_wh) / 30))
    for size in range(largest, _SMALLEST_FONT - 1, -2):
        choice = FontChoice(font, size)
        labels = [_label(pen, text, choice, image_wh, len(texts)) for text in texts]
        places = place_labels([label.wh for label in labels], bounds, image_wh)
        if all(place.is_free for place in places):
            break
    for place, colour in zip(places, colours, strict=True):
        pen.rectangle(place.corners, fill=colour)
    for place, colour in zip(places, colours, strict=True):
        if place.leader is not None:
            _draw_leader(pen, place.leader, max(2, size // 8), colour)
    for label, place, colour in zip(labels, places, colours, strict=True):
        _draw_text(pen, label, place.corners, colour)


def _draw_leader(
    pen: ImageDraw.ImageDraw, leader: tuple[tuple[float, float], tuple[float, float]], width: int, colour: Colour
) -> None:
    """Draw a line from a label to its region, with a dot at the region."""
    pen.line(leader, fill=colour, width=width)
    x, y = leader[1]
    pen.ellipse((x - 2 * width, y - 2 * width, x + 2 * width, y + 2 * width), fill=colour, outline="white")


def _label(pen: ImageDraw.ImageDraw, text: str, choice: FontChoice, image_wh: tuple[int, int], count: int) -> _Label:
    """Return a caption in lines no wider than the picture, and than its half where there are many."""
    words = " ".join(text.split())
    font, shown = choice.of(words if len(words) <= _MOST_CHARACTERS else f"{words[:_MOST_CHARACTERS]}…")
    _, top, _, bottom = pen.textbbox((0, 0), _TALL, font=font)
    line_height = bottom - top + _PADDING
    room = image_wh[0] * (1 if count <= _FEW else 0.5) - 2 * _PADDING
    most_lines = max(1, int(image_wh[1] / 2 / line_height))
    lines = wrap(shown, room, lambda part: pen.textlength(part, font=font), most_lines)
    width = max(pen.textlength(line, font=font) for line in lines)
    return _Label(lines, font, (width + 2 * _PADDING, len(lines) * line_height + _PADDING), line_height)


def _draw_text(pen: ImageDraw.ImageDraw, label: _Label, corners: Corners, colour: Colour) -> None:
    ink = "white" if sum(colour) < 3 * 140 else "black"
    _, top, _, _ = pen.textbbox((0, 0), _TALL, font=label.font)
    for number, line in enumerate(label.lines):
        place = corners[0] + _PADDING, corners[1] + _PADDING + number * label.line_height - top
        pen.text(place, line, font=label.font, fill=ink)
