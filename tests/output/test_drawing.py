"""Captions drawn on their image: every kind of outline where it belongs, and labels that can be read."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from runtime import (
    AttentionHead,
    Box,
    BoxSet,
    Caption,
    Crop,
    Mask,
    Patch,
    Point,
    Polygon,
    Region,
    Register,
    Trace,
    WholeImage,
    draw_captions,
)
from runtime.regions.outline import PolygonOutline

WIDTH, HEIGHT = 480, 360
GREY = Image.new("RGB", (WIDTH, HEIGHT), (128, 128, 128))


class Diamond:
    """A region of somebody else's."""

    def weights(self, canvas: object) -> None: ...


class DrawnDiamond(Diamond):
    """The same with an outline."""

    def outline(self, image_wh: tuple[int, int]) -> PolygonOutline:
        assert image_wh == (WIDTH, HEIGHT)
        return PolygonOutline(((240, 100), (340, 200), (240, 300), (140, 200)))


def changed(*regions: Region | None, text: str = "words") -> np.ndarray:
    """Return which pixels (H, W) of the picture differ from the plain image."""
    drawn = draw_captions(GREY, [Caption(text, 1.0, (), region) for region in regions])
    assert drawn.size == GREY.size
    return (np.asarray(drawn) != 128).any(axis=2)


def mask_of(left: int, top: int, right: int, bottom: int) -> Mask:
    array = np.zeros((HEIGHT, WIDTH), bool)
    array[top:bottom, left:right] = True
    return Mask(array)


@pytest.mark.parametrize(
    ("region", "drawn", "not_drawn"),
    [
        (Box(100, 100, 300, 200), [(100, 150), (300, 150), (200, 100), (200, 200)], [(200, 150), (90, 150)]),
        (Crop(100, 100, 300, 200), [(100, 150), (300, 150)], [(200, 150)]),
        # cut off at the edges of the picture
        (Box(-50, 100, 900, 200), [(0, 150), (479, 150)], [(200, 150)]),
        (BoxSet([(100, 100, 140, 140), (300, 100, 340, 140)]), [(100, 120), (340, 120)], [(220, 120)]),
        (Polygon([(100, 100), (300, 100), (100, 300)]), [(100, 200), (200, 100), (199, 200)], [(130, 150), (250, 250)]),
        (Trace([(100, 200), (300, 200)]), [(100, 200), (200, 200), (300, 200)], [(200, 190)]),
        (Trace.normalized([(0.25, 0.5), (0.75, 0.5)]), [(120, 180), (240, 180), (360, 180)], [(240, 170)]),
        (Point(240, 180), [(240, 180)], [(250, 190)]),
        (mask_of(100, 100, 300, 200), [(100, 100), (200, 150), (299, 199), (98, 150)], [(320, 150)]),
        (DrawnDiamond(), [(240, 100), (140, 200), (290, 150)], [(240, 200)]),
    ],
)
def test_an_outline_is_drawn_where_the_region_is(
    region: Region, drawn: list[tuple[int, int]], not_drawn: list[tuple[int, int]]
) -> None:
    pixels = changed(region)
    assert {(x, y): bool(pixels[y, x]) for x, y in drawn} == dict.fromkeys(drawn, True)
    assert {(x, y): bool(pixels[y, x]) for x, y in not_drawn} == dict.fromkeys(not_drawn, False)


@pytest.mark.parametrize(
    "region",
    [
        None,
        WholeImage(),
        Patch(1, 1),
        Register(0),
        AttentionHead(0),
        Box.published(10, 10, 50, 50),
        BoxSet([Box.published(10, 10, 50, 50)]),
        Trace.published([(0.5, 0.5)]),
        Diamond(),
    ],
)
def test_a_region_without_a_place_in_pixels_has_a_caption_only(region: Region | None) -> None:
    pixels = changed(region)
    rows, columns = pixels.nonzero()
    assert columns.min() == 0
    assert rows.max() < HEIGHT
    assert rows.min() > HEIGHT - 40
    assert pixels.sum() < 40 * 100
    np.testing.assert_array_equal(pixels, changed(None))


def test_labels_do_not_cover_each_other() -> None:
    one, two = Box(100, 100, 300, 200), Box(104, 104, 296, 196)
    alone = [draw_captions(GREY, [Caption("a label", 1.0, (), region)]) for region in (one, two)]
    both = np.asarray(draw_captions(GREY, [Caption("a label", 1.0, (), region) for region in (one, two)]))
    label = np.asarray(alone[0])[80:100, 100:150]
    np.testing.assert_array_equal(both[80:100, 100:150], label)  # the first is whole


def test_no_captions_are_the_image() -> None:
    assert not changed().any()


def test_the_image_itself_is_left_alone() -> None:
    image = GREY.copy()
    draw_captions(image, [Caption("words", 1.0, (), Box(1, 2, 30, 40))])
    assert image.tobytes() == GREY.tobytes()
