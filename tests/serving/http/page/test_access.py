"""The page for everyone: axe-core finds nothing, all is reached by the keyboard, nothing scrolls sideways."""

from __future__ import annotations

from collections.abc import Callable
from importlib.resources import files
from pathlib import Path

import pytest
from playwright.sync_api import Page, Route, expect

from tests.serving.http.page.conftest import OpenStage
from tests.serving.http.page.stage import CORNERS, SCENE, TRIANGLE, TRIANGLE_TEXT, Stage

_RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
_SMALLEST_TARGET = 24
"""Side of the smallest target that WCAG 2.2 allows, in CSS pixels."""


def empty(_: Stage) -> None:
    pass


def described(stage: Stage) -> None:
    """An image with regions, one of them selected, another being drawn, and the attention over it."""
    stage.open()
    stage.drag(*TRIANGLE)
    stage.expect_captions(TRIANGLE_TEXT)
    stage.button("Where cls looks").click()
    stage.page.locator("summary").click()
    stage.tool("Brush")
    stage.drag(*CORNERS)
    expect(stage.button("Done")).to_be_visible()


def failed(stage: Stage) -> None:
    """An image with a region that cannot be, an error of a file, and the field for a token."""
    stage.page.route("**/captions", _with_errors)
    stage.page.set_input_files("#file", SCENE)
    expect(stage.page.locator(".has-error")).to_have_count(1)
    stage.page.set_input_files("#file", {"name": f"{'long' * 30}.txt", "mimeType": "text/plain", "buffer": b"no"})
    expect(stage.error).to_contain_text("not an image")
    stage.page.evaluate("document.getElementById('token-form').hidden = false")


def copied(stage: Stage) -> None:
    stage.open()
    stage.page.evaluate("() => { navigator.clipboard.writeText = () => Promise.reject(new Error('not allowed')); }")
    stage.button("Copy Python").click()
    expect(stage.page.get_by_role("dialog")).to_be_visible()


STATES: list[Callable[[Stage], None]] = [empty, described, failed, copied]


def _with_errors(route: Route) -> None:
    answer = route.fetch()
    values = answer.json()
    for caption in values["captions"]:
        caption |= {"text": "", "score": None, "error": "Box(x1=9000.0, ...) lies outside the image"}
    route.fulfill(response=answer, json=values)


@pytest.mark.parametrize("state", STATES)
def test_axe_finds_nothing_in_light_and_dark(open_stage: OpenStage, state: Callable[[Stage], None]) -> None:
    stage, _ = open_stage(reduced_motion="reduce")
    state(stage)
    stage.page.evaluate(files("axe_playwright_python").joinpath("axe.min.js").read_text(encoding="utf-8"))
    for scheme in ("light", "dark"):
        stage.page.emulate_media(color_scheme=scheme)
        found = stage.page.evaluate("async (rules) => (await axe.run({runOnly: rules})).violations", _RULES)
        assert [(rule["id"], [node["html"] for node in rule["nodes"]]) for rule in found] == [], scheme


WINDOWS = [
    (320, 640),
    (320, 256),  # 1280 x 1024 at 400%, WCAG's own measure
    (640, 430),  # 1280 x 860 at 200%
    (900, 600),
]
"""Widths and heights in CSS pixels, of which there are fewer in a window that is zoomed."""


@pytest.mark.parametrize("state", STATES[:-1])
def test_nothing_scrolls_sideways_and_targets_are_large_enough(
    open_stage: OpenStage, state: Callable[[Stage], None]
) -> None:
    stage, _ = open_stage()
    state(stage)
    for width, height in WINDOWS:
        stage.page.set_viewport_size({"width": width, "height": height})
        assert stage.page.evaluate("document.documentElement.scrollWidth") <= width
        assert cut_off(stage.page) == [], width


def cut_off(page: Page) -> list[str]:
    """Return the controls that reach outside the window's width or are too small."""
    found: list[str] = page.evaluate(
        """(least) => Array.from(document.querySelectorAll("button, select, input, summary, #stage"))
            .filter((control) => control.checkVisibility())
            .map((control) => [control.id || control.textContent.trim(), control.getBoundingClientRect()])
            .filter(([, box]) => box.left < 0 || box.right > innerWidth || Math.min(box.width, box.height) < least)
            .map(([name]) => name)""",
        _SMALLEST_TARGET,
    )
    return found


@pytest.mark.slow
def test_drawing_works_at_320_pixels_and_at_200_percent(open_stage: OpenStage) -> None:
    for window in (
        {"viewport": {"width": 320, "height": 640}},
        {"viewport": {"width": 640, "height": 430}, "device_scale_factor": 2},
    ):
        stage, _ = open_stage(**window)
        stage.open()
        stage.drag(*TRIANGLE)
        stage.expect_captions(TRIANGLE_TEXT)
        stage.hover((391, 330))
        expect(stage.bubble).to_have_text(TRIANGLE_TEXT)


def test_every_control_is_reached_by_the_keyboard_and_shows_its_focus(stage: Stage) -> None:
    stage.drag(*TRIANGLE)
    stage.expect_captions(TRIANGLE_TEXT)
    controls = "button:enabled, select, input:not([hidden]), summary, #marks"
    wanted = stage.page.evaluate(
        """(controls) => Array.from(document.querySelectorAll(controls))
            .filter((each) => each.checkVisibility()).length""",
        controls,
    )
    stage.page.evaluate("document.activeElement.blur()")
    reached = set()
    for _ in range(wanted + 1):  # the browser's own controls are one more
        stage.keys("Tab")
        focus = stage.page.evaluate(
            """(controls) => {
                const [focused, style] = [document.activeElement, getComputedStyle(document.activeElement)];
                const index = Array.from(document.querySelectorAll(controls)).indexOf(focused);
                return [index, style.outlineStyle !== "none" && parseFloat(style.outlineWidth) >= 2];
            }""",
            controls,
        )
        if focus[0] >= 0:
            assert focus[1], f"control {focus[0]} shows no focus"
            reached.add(focus[0])
    assert len(reached) == wanted


def test_tools_are_chosen_in_the_list_of_controls_alone(stage: Stage) -> None:
    """Letters are commands only while the image is focused: elsewhere they may be someone's speech input."""
    stage.button("Copy JSON").focus()
    stage.keys("p")
    expect(stage.button("Box")).to_have_attribute("aria-pressed", "true")
    stage.marks.focus()
    stage.keys("p")
    expect(stage.button("Polygon")).to_have_attribute("aria-pressed", "true")


def test_what_is_said_waits_until_the_caption_has_settled(stage: Stage) -> None:
    """While the cursor crosses the image, captions change beside it; the live region says the last one alone."""
    expect(stage.status).to_have_text("Whole image: five shapes on a checked white background")
    stage.page.evaluate(
        """() => {
            window.said = [];
            const status = document.getElementById("status");
            new MutationObserver(() => window.said.push(status.textContent)).observe(status, {childList: true});
        }"""
    )
    for x, y in [(100, 100), (205, 530), (515, 515), (391, 330)]:
        stage.hover((x, y))
    expect(stage.status).to_have_text(TRIANGLE_TEXT)
    assert stage.page.evaluate("window.said") == [TRIANGLE_TEXT]


def test_the_page_is_one_language_and_small_modules() -> None:
    folder = Path(__file__).parents[4] / "runtime" / "serving" / "http" / "page"
    for module in folder.glob("*.js"):
        lines = module.read_text(encoding="utf-8").splitlines()
        assert lines[0] == "// @ts-check", module.name
        assert len(lines) < 420, module.name
