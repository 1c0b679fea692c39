"""The caption under the cursor and of a shape while it is drawn, and where cls looks."""

from __future__ import annotations

import numpy as np
import pytest
from playwright.sync_api import expect

from runtime import Captioner
from tests.serving.http.page.conftest import OpenStage
from tests.serving.http.page.stage import SCENE, TRIANGLE, TRIANGLE_TEXT, Point, Stage

SQUARE_TEXT = "a large solid green square"


def test_the_caption_follows_the_cursor_without_another_pass_of_the_backbone(stage: Stage) -> None:
    asked: list[str] = []
    stage.page.on("request", lambda request: asked.append(request.url.rsplit("/", 1)[1]))
    stage.hover((391, 330))
    expect(stage.bubble).to_have_text(TRIANGLE_TEXT)
    stage.expect_said(TRIANGLE_TEXT)
    stage.hover((205, 530))
    expect(stage.bubble).to_have_text(SQUARE_TEXT)
    stage.expect_said(SQUARE_TEXT)
    stage.page.mouse.move(5, 5)
    expect(stage.bubble).to_be_hidden()
    assert set(asked) == {"captions"}


def test_all_that_keys_do_is_said(stage: Stage) -> None:
    stage.marks.focus()
    stage.step_to((336, 336), (391, 330))
    expect(stage.bubble).to_have_text(TRIANGLE_TEXT)
    stage.expect_said(f"391, 330: {TRIANGLE_TEXT}")
    stage.keys("b")
    stage.expect_said("Box. Drag from corner to corner. With keys: Space begins, arrows move, Space ends.")
    stage.keys("Space")
    stage.expect_said("Set at 391, 330.")
    stage.keys("Escape")
    stage.expect_said("Given up.")
    with stage.page.expect_response("**/captions"):
        stage.keys("o", "Space")
    stage.expect_captions(TRIANGLE_TEXT)
    stage.expect_said(f"Point: {TRIANGLE_TEXT}")
    stage.keys("Delete")
    stage.expect_said("Removed.")
    stage.keys("Control+z")
    stage.expect_said("Undone.")


def test_one_request_is_in_flight_and_the_latest_place_wins(stage: Stage) -> None:
    """The first answer is held back while the cursor moves on: one more request follows, of the last place."""
    held = stage.hold_first("**/captions")
    with stage.page.expect_request("**/captions"):
        stage.hover((100, 530))
    for x in range(120, 400, 20):
        stage.hover((x, 530))
    stage.hover((391, 330))
    assert len(held) == 1
    held[0].continue_()
    expect(stage.bubble).to_have_text(TRIANGLE_TEXT)
    assert len(held) == 2


def test_a_shape_has_its_caption_while_it_is_drawn_which_does_not_cover_it(stage: Stage) -> None:
    stage.begin(*TRIANGLE)
    expect(stage.bubble).to_have_text(TRIANGLE_TEXT)
    bubble = stage.bubble.bounding_box()
    assert bubble is not None
    (left, top), (right, bottom) = map(stage.at, TRIANGLE)
    is_beside = bubble["x"] >= right or bubble["x"] + bubble["width"] <= left
    assert is_beside or bubble["y"] >= bottom or bubble["y"] + bubble["height"] <= top
    expect(stage.captions).to_have_count(1)
    stage.page.mouse.up()
    stage.expect_captions(TRIANGLE_TEXT)


def test_where_cls_looks_is_shown_over_the_image(open_stage: OpenStage, demo: Captioner) -> None:
    stage, watch = open_stage()
    watch.allow("willReadFrequently")  # of the pixels that are read here
    stage.open()
    weights = demo.encode(SCENE).canvases[0].attention
    side = 672 / len(weights)
    rows, columns = np.unravel_index([weights.argmax(), weights.argmin()], weights.shape)
    most, least = (((column + 0.5) * side, (row + 0.5) * side) for row, column in zip(rows, columns, strict=True))
    plain = brightness(stage, most), brightness(stage, least)
    button = stage.button("Where cls looks")
    button.click()
    expect(button).to_have_attribute("aria-pressed", "true")
    wait_for_brightness(stage, least, "<", plain[1] / 2)
    assert brightness(stage, most) == pytest.approx(plain[0], rel=0.1)  # between the centres of patches
    button.click()
    wait_for_brightness(stage, least, ">", plain[1] * 0.9)


_BRIGHTNESS = """([x, y]) => {
    const pen = document.getElementById("picture").getContext("2d");
    const [red, green, blue] = pen.getImageData(x, y, 1, 1).data;
    return (red + green + blue) / 3;
}"""


def brightness(stage: Stage, point: Point) -> float:
    """Return the mean of the channels of a pixel of the picture."""
    return float(stage.page.evaluate(_BRIGHTNESS, on_canvas(stage, point)))


def wait_for_brightness(stage: Stage, point: Point, sign: str, limit: float) -> None:
    stage.page.wait_for_function(f"(point) => ({_BRIGHTNESS})(point) {sign} {limit}", arg=on_canvas(stage, point))


def on_canvas(stage: Stage, point: Point) -> Point:
    """Return where a point of the image lies on the canvas."""
    (x, y), box = stage.at(point), stage.marks.bounding_box()
    assert box is not None
    return x - box["x"], y - box["y"]
