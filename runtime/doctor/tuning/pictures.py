"""Pictures to compare precisions on where there are no photographs, and the regions that are described in them.

A picture is clouds of several sizes in soft colours, as natural images have contrast at all scales, with shapes in
strong colours before them. Numbers make them, the same on every machine.
"""

from __future__ import annotations

import random

import numpy as np
from PIL import Image, ImageDraw

from runtime.regions import Box, Region, WholeImage

PICTURE_COUNT = 4
_WH = (640, 480)
_CLOUD_SIZES = (3, 6, 12, 24, 48, 96)
"""Patches of colour along the width, from the largest clouds to the smallest."""
_SHAPES = 9
_COLOURS = ("red", "green", "blue", "yellow", "black", "white", "orange", "purple")
_WINDOWS = ((3, 2), (7, 4))
"""Of a side: how many windows, and the part of it that each takes."""


def draw_picture(number: int) -> Image.Image:
    """Return a picture; other numbers make others."""
    picture = _clouds(np.random.default_rng(number))
    draw, chance = ImageDraw.Draw(picture), random.Random(number)
    for _ in range(_SHAPES):
        size = chance.randint(50, 180)
        x, y = (chance.randint(0, side - size) for side in _WH)
        _draw_shape(draw, chance.choice(("ellipse", "rectangle", "triangle")), (x, y, x + size, y + size), chance)
    return picture


def regions_of(image_wh: tuple[int, int]) -> list[Region]:
    """Return regions to describe in an image: overlapping windows of two sizes, and the whole."""
    windows = [
        Box(x * (width - side_x), y * (height - side_y), x * (width - side_x) + side_x, y * (height - side_y) + side_y)
        for width, height in [image_wh]
        for count, part in _WINDOWS
        for side_x, side_y in [(width / part, height / part)]
        for y in np.linspace(0, 1, count).tolist()
        for x in np.linspace(0, 1, count).tolist()
    ]
    return [*windows, WholeImage()]


def _clouds(generator: np.random.Generator) -> Image.Image:
    sums = np.zeros((_WH[1], _WH[0], 3), np.float32)
    for size in _CLOUD_SIZES:
        noise = generator.integers(0, 256, (size * _WH[1] // _WH[0] + 1, size, 3), dtype=np.uint8)
        smooth = Image.fromarray(noise).resize(_WH, Image.Resampling.BICUBIC)
        sums += (np.asarray(smooth, np.float32) - 127.5) / size  # contrast falls as the frequency rises
    sums *= 64 / sums.std()
    return Image.fromarray((sums + 127.5).clip(0, 255).astype(np.uint8))


def _draw_shape(draw: ImageDraw.ImageDraw, shape: str, box: tuple[int, int, int, int], chance: random.Random) -> None:
    colour, (left, top, right, bottom) = chance.choice(_COLOURS), box
    if shape == "triangle":
        draw.polygon([((left + right) // 2, top), (left, bottom), (right, bottom)], fill=colour)
    elif shape == "ellipse":
        draw.ellipse(box, fill=colour)
    else:
        draw.rectangle(box, fill=colour)
