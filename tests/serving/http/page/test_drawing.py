"""Each kind of region is drawn with the mouse, with touch and with the keyboard alone, and described."""

from __future__ import annotations

import json
from collections.abc import Sequence

import pytest
from playwright.sync_api import expect

from runtime.regions.detections import as_regions
from runtime.regions.serialization import kind_of
from tests.serving.http.page.conftest import OpenStage
from tests.serving.http.page.stage import (
    CORNERS,
    MOON,
    MOON_TEXT,
    PAIR_TEXT,
    RING,
    SCENE_WH,
    SQUARE,
    STAR,
    STAR_TEXT,
    TRIANGLE,
    TRIANGLE_TEXT,
    Point,
    Stage,
)

CENTRE = (336.0, 336.0)
"""Where the crosshair begins."""
POINT = (391, 330)
KINDS: dict[str, tuple[Sequence[Sequence[Point]], str, str]] = {
    "Box": ([TRIANGLE], "box", TRIANGLE_TEXT),
    "Box set": ([SQUARE, RING], "box_set", PAIR_TEXT),
    "Polygon": ([(corner,) for corner in CORNERS], "polygon", TRIANGLE_TEXT),
    "Brush": ([MOON], "mask", MOON_TEXT),
    "Trace": ([STAR], "trace", STAR_TEXT),
    "Point": ([(POINT,)], "point", TRIANGLE_TEXT),
}
"""The tools: the strokes drawn with each, the kind of the region, and the demo's caption of it."""
IN_PARTS = ("Box set", "Polygon", "Brush")
KEYS = {"Box": "b", "Box set": "s", "Polygon": "p", "Brush": "m", "Trace": "t", "Point": "o"}


TEXTS = [text for _, _, text in KINDS.values()]


def assert_kinds(stage: Stage) -> None:
    """All kinds are described, and the JSON of each is one that the runtime reads."""
    stage.expect_captions(*TEXTS)
    asked = json.loads(stage.copied("JSON"))
    regions = as_regions(asked["regions"], SCENE_WH)
    assert [kind_of(region) for region in regions] == ["whole_image", *(kind for _, kind, _ in KINDS.values())]


def test_the_mouse_draws_each_kind(stage: Stage) -> None:
    for tool, (strokes, _, _) in KINDS.items():
        stage.tool(tool)
        for stroke in strokes:
            stage.drag(*stroke)
        if tool in IN_PARTS:
            stage.button("Done").click()
    assert_kinds(stage)


def test_a_finger_draws_each_kind(open_stage: OpenStage) -> None:
    stage, _ = open_stage(has_touch=True, is_mobile=True, viewport={"width": 412, "height": 860})
    stage.open()
    for tool, (strokes, _, _) in KINDS.items():
        stage.button(tool).tap()
        for stroke in strokes:
            stage.touch(*stroke)
        if tool in IN_PARTS:
            stage.button("Done").tap()
    assert_kinds(stage)


@pytest.mark.slow
def test_the_keyboard_alone_draws_each_kind(stage: Stage) -> None:
    stage.marks.focus()
    at: Point = CENTRE
    for tool, (strokes, _, _) in KINDS.items():
        stage.keys(KEYS[tool])
        for stroke in strokes:
            for number, point in enumerate(stroke):
                stage.step_to(at, point)
                at = point
                if number == 0:
                    stage.keys("Space")
            if len(stroke) > 1:
                stage.keys("Space")
        if tool in IN_PARTS:
            stage.keys("Enter")
    assert_kinds(stage)


def test_keys_reach_every_pixel(stage: Stage) -> None:
    stage.marks.focus()
    stage.keys("b")
    stage.step_to(CENTRE, TRIANGLE[0])
    stage.keys("Enter")
    stage.step_to(*TRIANGLE)
    stage.keys("Enter")
    stage.expect_captions(TRIANGLE_TEXT)
    region = json.loads(stage.copied("JSON"))["regions"][1]
    assert region["xyxy"] == [276, 174, 507, 399]


def test_the_mouse_is_right_to_a_pixel_of_the_screen(stage: Stage) -> None:
    stage.drag(*TRIANGLE)
    stage.expect_captions(TRIANGLE_TEXT)
    corners = json.loads(stage.copied("JSON"))["regions"][1]["xyxy"]
    assert corners == pytest.approx([276, 174, 507, 399], abs=2)  # a pixel of the screen is 1.4 of the image


def test_a_polygon_is_closed_at_its_first_corner_by_a_double_click_or_by_a_drag_around_a_thing(stage: Stage) -> None:
    stage.tool("Polygon")
    for corner in (*CORNERS, CORNERS[0]):
        stage.click(corner)
    stage.expect_captions(TRIANGLE_TEXT)
    stage.drag(*CORNERS, CORNERS[0])
    stage.click(CORNERS[0])
    stage.click(CORNERS[1])
    stage.page.mouse.dblclick(*stage.at(CORNERS[2]))
    stage.expect_captions(*[TRIANGLE_TEXT] * 3)
    drawn = json.loads(stage.copied("JSON"))["regions"][1:]
    assert [len(region["points"]) for region in drawn] == [3, 3, 3]


def test_escape_gives_a_drawing_up(stage: Stage) -> None:
    stage.tool("Polygon")
    stage.click(CORNERS[0])
    expect(stage.button("Give up")).to_be_visible()
    stage.marks.focus()
    stage.keys("Escape")
    expect(stage.button("Give up")).to_have_count(0)
    stage.begin(*TRIANGLE)
    stage.keys("Escape")
    stage.page.mouse.up()
    stage.expect_captions()


def test_undo_drops_a_stroke_then_regions_and_redo_brings_them_back(stage: Stage) -> None:
    stage.drag(*TRIANGLE)
    stage.tool("Trace")
    stage.drag(*STAR)
    stage.expect_captions(TRIANGLE_TEXT, STAR_TEXT)
    stage.tool("Box set")
    stage.drag(*SQUARE)
    stage.drag(*RING)
    stage.keys("Control+z")
    stage.button("Done").click()
    stage.expect_captions(TRIANGLE_TEXT, STAR_TEXT, "a large solid green square")
    stage.keys("Control+z", "Control+z", "Control+z")
    stage.expect_captions()
    expect(stage.button("Undo")).to_be_disabled()
    stage.keys("Control+Shift+z", "Control+Shift+z")
    stage.expect_captions(TRIANGLE_TEXT, STAR_TEXT)
    stage.button("Remove all regions").click()
    stage.expect_captions()
    stage.button("Undo").click()
    stage.expect_captions(TRIANGLE_TEXT, STAR_TEXT)


def test_selecting_in_the_list_and_on_the_image_is_the_same(stage: Stage) -> None:
    stage.drag(*TRIANGLE)
    stage.tool("Point")
    stage.click((515, 470))
    expect(stage.captions).to_have_count(3)
    selected = stage.page.locator(".choose[aria-pressed=true]")
    stage.tool("Select")
    stage.click((391, 330))
    expect(selected).to_contain_text(TRIANGLE_TEXT)
    stage.click((30, 640))
    expect(selected).to_have_count(0)
    stage.page.locator(".choose").nth(1).click()
    expect(selected).to_contain_text("1 Box")
    stage.marks.focus()
    stage.keys("Delete")
    expect(stage.captions).to_have_count(2)
    stage.button("Remove 1 Point").click()
    stage.expect_captions()


def test_a_click_with_a_tool_that_drags_selects(stage: Stage) -> None:
    stage.drag(*TRIANGLE)
    stage.expect_captions(TRIANGLE_TEXT)
    stage.click((20, 640))
    expect(stage.page.locator(".choose[aria-pressed=true]")).to_have_count(0)
    stage.click((391, 330))
    expect(stage.page.locator(".choose[aria-pressed=true]")).to_have_count(1)
