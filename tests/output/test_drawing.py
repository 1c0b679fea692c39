"""Captions drawn on their image: every kind of outline where it belongs, and labels that can be read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

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
    PatchcaptionError,
    Point,
    Polygon,
    Region,
    Register,
    Trace,
    WholeImage,
    draw_captions,
)
from runtime.output import drawing, fonts
from runtime.output.fonts import FontChoice
from runtime.output.labels import place_labels, wrap
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


LONG = "a large striped red triangle on a checked white background beside a small dotted blue moon"


def drawn_where(picture: Image.Image, image: Image.Image) -> np.ndarray:
    return (np.asarray(picture) != np.asarray(image)).any(axis=2)


def test_long_captions_are_wrapped_within_narrow_frames() -> None:
    narrow = Image.new("RGB", (150, 480), (128, 128, 128))
    one_line = drawn_where(draw_captions(narrow, [Caption("words", 1.0, (), Box(20, 200, 120, 400))]), narrow)
    drawn = drawn_where(draw_captions(narrow, [Caption(LONG, 1.0, (), Box(20, 200, 120, 400))]), narrow)
    assert drawn[:200].any(axis=1).sum() > 3 * one_line[:200].any(axis=1).sum()


@pytest.mark.parametrize("text", [LONG, "x" * 500, "猫" * 80, "a " * 400, ""])
def test_lines_are_no_wider_than_the_room_and_hold_the_text(text: str) -> None:
    lines = wrap(text, 30, len, most_lines=1000)
    assert max(map(len, lines)) <= 30
    assert "".join("".join(lines).split()) == "".join(text.split())
    few = wrap(text, 30, len, most_lines=2)
    assert len(few) <= 2
    assert few == lines or few[-1].endswith("…")


def test_no_more_of_a_caption_is_measured_than_anybody_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    measured = list[int]()

    def measuring(text: str, *arguments: Any) -> list[str]:
        measured.append(len(text))
        return wrap(text[:50], *arguments)

    monkeypatch.setattr(drawing, "wrap", measuring)
    changed(Box(10, 10, 90, 80), text="x" * 100_000)
    assert set(measured) == {1001}


@pytest.mark.parametrize(
    "text",
    [
        "\x1b\x00wo\x9brds",
        "\u202ewords\u2066",
        "\u200bwor\u00adds\ufeff",
        "wo\ud800rds",
        "words\U0010ffff",
        "\r\n words",
    ],
)
def test_what_leaves_no_mark_leaves_none_in_a_picture(text: str, recwarn: pytest.WarningsRecorder) -> None:
    box = Box(10, 10, 90, 80)
    assert (changed(box, text=text) == changed(box)).all()
    assert not recwarn


def test_labels_cover_no_other_and_are_joined_to_regions_that_are_far() -> None:
    regions = [(200.0 + 8 * number, 200.0 + 4 * number, 260.0 + 8 * number, 300.0 + 4 * number) for number in range(16)]
    places = place_labels([(120.0, 20.0)] * 16, regions, (672, 672))
    assert any(place.leader for place in places)
    for number, place in enumerate(places):
        left, top, right, bottom = place.corners
        assert 0 <= left < right <= 672
        assert 0 <= top < bottom <= 672
        assert place.is_free
        for other in places[:number]:
            x1, y1, x2, y2 = other.corners
            assert right <= x1 or x2 <= left or bottom <= y1 or y2 <= top
        x1, y1, x2, y2 = regions[number]
        gap = np.hypot(max(x1 - right, left - x2, 0), max(y1 - bottom, top - y2, 0))
        assert (place.leader is not None) == (gap > 5)
        if place.leader is not None:
            (from_x, from_y), (to_x, to_y) = place.leader
            assert left <= from_x <= right
            assert top <= from_y <= bottom
            assert x1 <= to_x <= x2
            assert y1 <= to_y <= y2


def test_where_there_is_no_room_letters_get_smaller() -> None:
    picture = draw_captions(GREY, [Caption(f"shape {n}", 1.0, (), Box(200, 150, 260, 200)) for n in range(60)])
    assert picture.size == GREY.size


@pytest.mark.parametrize("text", ["é ü ñ ß € –", "кошка", "γάτα", "ďáblice"])
def test_a_font_that_has_the_characters_is_taken(text: str, recwarn: pytest.WarningsRecorder) -> None:
    """Of those that are installed; without one, something that it has stands for each, and it is said."""
    font, shown = FontChoice(None, 16).of(text)
    lacking = bytes(font.getmask("\U0010ffff"))
    assert all(bytes(font.getmask(one)) != lacking for one in shown if not one.isspace())
    assert shown == text or any("no font here has the characters" in str(one.message) for one in recwarn)


def test_characters_that_no_font_has_are_said_and_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fonts, "_installed", lambda: ())
    fonts._file_for.cache_clear()
    with pytest.warns(UserWarning, match="no font here has the characters 猫; install one that has"):
        _, shown = FontChoice(None, 16).of("a cat 猫")
    fonts._file_for.cache_clear()
    assert shown == "a cat ?"


def test_a_font_may_be_given(tmp_path: Path) -> None:
    caption = [Caption("a caption of words", 1.0, (), Box(100, 100, 300, 200))]
    given = next(iter(fonts._installed()), None)
    if given is not None:
        picture = draw_captions(GREY, caption, font=given)
        assert (np.asarray(picture) != np.asarray(draw_captions(GREY, caption))).any()
    (tmp_path / "font.ttf").write_text("words")
    for file in (tmp_path / "font.ttf", tmp_path / "none.ttf", tmp_path):
        with pytest.raises(PatchcaptionError, match="cannot be read as a font"):
            draw_captions(GREY, caption, font=file)
