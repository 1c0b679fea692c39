"""Regions drawn on their images, pixel by pixel."""

from __future__ import annotations

import io
import re

import numpy as np
import pytest
from PIL import Image

from benchmarks.scoring.drawn_regions import cut_out, draw_region, through_jpeg
from benchmarks.scoring.region_forms import RegionForm
from runtime import Box, BoxSet, ImageError, Mask, Patch, Region, RegionError, Trace, WholeImage

RED = (255, 0, 0)
DOT = (255, 133, 133)
"""Red over white at 122 of 255."""
DISC = """
..###..
.#####.
#######
#######
#######
.#####.
..###..
"""
PUBLISHED = RegionForm("published")


def white(width: int = 30, height: int = 20) -> Image.Image:
    return Image.new("RGB", (width, height), "white")


def marked(image: Image.Image, colour: tuple[int, int, int] = RED) -> np.ndarray:
    """Where an image has a colour (H, W); all else must be white."""
    pixels = np.asarray(image)
    found = (pixels == colour).all(2)
    assert (pixels[~found] == 255).all()
    return found


def frame(x1: int, y1: int, x2: int, y2: int, width: int = 30, height: int = 20) -> np.ndarray:
    """The pixels of a line of 2 pixels inside corners that count."""
    found = np.zeros((height, width), bool)
    found[y1 : y2 + 1, x1 : x2 + 1] = True
    found[y1 + 2 : y2 - 1, x1 + 2 : x2 - 1] = False
    return found


@pytest.mark.parametrize("region", [Box(5, 4, 20, 15), PUBLISHED.box((5, 4, 20, 15))], ids=["exact", "published"])
def test_a_box_is_a_red_line_of_two_pixels_inside_its_corners(region: Region) -> None:
    image = white()
    assert (marked(draw_region(image, region)) == frame(5, 4, 20, 15)).all()
    assert (np.asarray(image) == 255).all(), "the image itself stays as it is"


@pytest.mark.parametrize(
    "region", [BoxSet([(1, 1, 9, 8), (12, 3, 28, 17)]), PUBLISHED.box_set([(1, 1, 9, 8), (12, 3, 28, 17)])]
)
def test_all_boxes_of_a_set_are_drawn(region: Region) -> None:
    assert (marked(draw_region(white(), region)) == frame(1, 1, 9, 8) | frame(12, 3, 28, 17)).all()


def test_what_reaches_outside_the_image_is_not_seen() -> None:
    drawn = marked(draw_region(white(), Box(-1e12, 4, 20, 1e12)))
    expected = np.zeros((20, 30), bool)
    expected[4:, 19:21] = expected[4:6, :21] = True
    assert (drawn == expected).all()
    assert not marked(draw_region(white(), Box(100, 100, 200, 200))).any()


@pytest.mark.parametrize(
    "region",
    [
        Trace.normalized([(0.5, 0.5), (1.01, 0.5), (-0.01, 0.5)]),
        Trace([(15, 10), (31, 10), (-1, 10)]),
        PUBLISHED.trace([(0.5, 0.5), (1.01, 0.5), (-0.01, 0.5)]),
    ],
    ids=["normalized", "pixels", "published"],
)
def test_the_points_of_a_trace_on_the_image_are_dots_of_radius_three(region: Region) -> None:
    dots = marked(draw_region(white(), region), DOT)
    disc = np.array([[letter == "#" for letter in line] for line in DISC.split()])
    assert (dots[7:14, 12:19] == disc).all()
    assert dots.sum() == disc.sum()


def test_dots_lie_where_their_pixel_is_cut_down_to_and_do_not_add_up() -> None:
    once = draw_region(white(), Trace.normalized([(0.5, 0.5)]))
    again = draw_region(white(), Trace.normalized([(0.5 + 0.9 / 30, 0.5 + 0.9 / 20), (0.5, 0.5)]))
    assert (np.asarray(once) == np.asarray(again)).all()


def test_dots_lie_over_what_the_image_shows() -> None:
    drawn = draw_region(Image.new("RGB", (30, 20), (0, 100, 200)), Trace([(15, 10)]))
    assert drawn.getpixel((15, 10)) == (122, 52, 104)  # 122 parts of red, 133 of the image
    assert drawn.getpixel((0, 0)) == (0, 100, 200)


def test_nothing_is_drawn_on_a_whole_image() -> None:
    assert not marked(draw_region(white(), WholeImage())).any()


@pytest.mark.parametrize(
    "region", [Mask(np.ones((20, 30))), Patch(1, 1), Box.published(0, 0, 9, 9), BoxSet.published([(0, 0, 9, 9)])]
)
def test_what_has_no_place_on_the_image_or_is_no_published_kind_is_refused(region: Region) -> None:
    with pytest.raises(RegionError, match=re.escape("cannot be drawn; expected a box in image pixels")):
        draw_region(white(), region)


@pytest.mark.parametrize(
    ("box", "size", "corner"),
    [
        (Box(3, 2, 13, 8), (10, 6), (3, 2)),
        (Box(3.4, 2.6, 13.4, 8.6), (10, 6), (3, 3)),
        (Box(25, 15, 99, 99), (5, 5), (25, 15)),
        (Box(10.2, 5.2, 10.4, 5.3), (1, 1), (10, 5)),
        (Box(40, 30, 50, 60), (1, 1), (29, 19)),
        (Box(-9, -9, -3, -3), (1, 1), (0, 0)),
        (PUBLISHED.box((3, 2, 3, 8)), (1, 6), (3, 2)),
    ],
)
def test_a_box_is_cut_out_in_whole_pixels_and_at_least_one(
    box: Region, size: tuple[int, int], corner: tuple[int, int]
) -> None:
    pixels = np.zeros((20, 30, 3), np.uint8)
    pixels[:, :, 0], pixels[:, :, 1] = np.arange(30), np.arange(20)[:, None]
    cropped = cut_out(Image.fromarray(pixels), box)
    assert cropped is not None
    assert cropped.size == size
    assert cropped.getpixel((0, 0)) == (*corner, 0)


@pytest.mark.parametrize("region", [BoxSet([(1, 1, 9, 8)]), Trace([(3, 3)]), WholeImage()])
def test_other_regions_are_not_cut_out(region: Region) -> None:
    assert cut_out(white(), region) is None


def test_a_picture_is_what_pillow_saves_as_jpeg() -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (19, 33, 3), np.uint8))
    file = io.BytesIO()
    noise.save(file, "JPEG", quality=75, subsampling="4:2:0")
    found = through_jpeg(noise)
    assert (found.mode, found.size) == ("RGB", (33, 19))
    assert (np.asarray(found) == np.asarray(Image.open(file))).all()
    assert (np.asarray(found) != np.asarray(noise)).any()


def test_a_picture_that_no_jpeg_can_hold_is_told() -> None:
    with pytest.raises(ImageError, match="at most 65500 pixels a side, as it is scored as JPEG, got 65501 x 2"):
        through_jpeg(Image.new("RGB", (65501, 2)))
    assert through_jpeg(Image.new("RGB", (65500, 1))).size == (65500, 1)
