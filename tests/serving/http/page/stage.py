"""Drives the page as its users do, in the pixels of the image that it shows."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from playwright.sync_api import Locator, Page, Route, expect

from tests.conftest import SAMPLE

SCENE = SAMPLE / "scene.jpg"
SCENE_WH = (672, 672)
WHOLE = "five shapes on a checked white background"
TRIANGLE = ((276, 174), (507, 399))
TRIANGLE_TEXT = "a large striped red triangle"
SQUARE, RING = ((90, 420), (321, 648)), ((453, 450), (582, 582))
PAIR_TEXT = "a green square and a pink ring"
STAR = ((156, 80), (161, 95), (154, 119), (173, 144), (145, 139), (180, 146), (201, 138), (170, 100), (219, 85))
STAR_TEXT = "a small striped orange star"
MOON = ((215, 285), (190, 330), (195, 375), (240, 405), (290, 405))
MOON_TEXT = "a small dotted blue moon"
CORNERS = ((353, 178), (508, 352), (277, 399))
"""Those of the triangle."""

_STEP, _LARGE_STEP = 7, 34
"""Of the crosshair, in pixels of an image of `SCENE_WH`."""

Point = tuple[float, float]

_KEEP_WHAT_IS_SAID = """() => {
  const line = document.getElementById("status");
  const said = [];
  new MutationObserver((changes) => {
    for (const { addedNodes } of changes) said.push(...[...addedNodes].map((node) => node.textContent));
    line.dataset.said = said.join("\\n");
  }).observe(line, { childList: true });
}"""


class Stage:
    """A page with the sample scene, or another image of a size."""

    def __init__(self, page: Page, image_wh: tuple[int, int] = SCENE_WH) -> None:
        self.page = page
        self.image_wh = image_wh
        self.marks = page.locator("#marks")
        self.bubble = page.locator("#bubble")
        self.status = page.locator("#status")
        self.error = page.locator("#error-text")
        self.captions = page.locator(".region .text")
        page.evaluate(_KEEP_WHAT_IS_SAID)

    def open(self, file: Path = SCENE) -> None:
        """Open an image; of the sample, wait for its caption."""
        self.page.set_input_files("#file", file)
        if file == SCENE:
            expect(self.captions.first).to_have_text(WHOLE)

    def hold_first(self, pattern: str) -> list[Route]:
        """Return the requests to come of a pattern, of which the first waits to be continued."""
        held: list[Route] = []

        def hold(route: Route) -> None:
            held.append(route)
            if len(held) > 1:
                route.continue_()

        self.page.route(pattern, hold)
        return held

    def tool(self, label: str) -> None:
        self.button(label).click()

    def button(self, name: str) -> Locator:
        return self.page.get_by_role("button", name=name, exact=True).and_(self.page.locator(":visible"))

    def at(self, point: Point) -> Point:
        """Return where a point of the image lies in the window."""
        ((x, y),) = self.along([point])
        return x, y

    def along(self, points: Sequence[Point]) -> list[Point]:
        """Return where points of the image lie in the window."""
        self.marks.scroll_into_view_if_needed()
        box = self.marks.bounding_box()
        assert box is not None
        width, height = self.image_wh
        scale = min(box["width"] / width, box["height"] / height)
        left, top = (box["width"] - width * scale) / 2, (box["height"] - height * scale) / 2
        return [(box["x"] + left + x * scale, box["y"] + top + y * scale) for x, y in points]

    def hover(self, point: Point) -> None:
        self.page.mouse.move(*self.at(point))

    def click(self, point: Point) -> None:
        self.page.mouse.click(*self.at(point))

    def begin(self, *points: Point) -> None:
        """Press the mouse and move it along points."""
        first, *others = self.along(points)
        self.page.mouse.move(*first)
        self.page.mouse.down()
        for point in others:
            self.page.mouse.move(*point)

    def drag(self, *points: Point) -> None:
        self.begin(*points)
        self.page.mouse.up()

    def touch(self, *points: Point) -> None:
        """Put a finger down, move it along points, and lift it."""
        session = self.page.context.new_cdp_session(self.page)
        for number, (x, y) in enumerate(self.along(points)):
            kind = "touchMove" if number else "touchStart"
            session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": [{"x": x, "y": y}]})
        session.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
        session.detach()

    def keys(self, *keys: str) -> None:
        for key in keys:
            self.page.keyboard.press(key)

    def step_to(self, start: Point, end: Point) -> None:
        """Move the crosshair with the arrows alone."""
        for begin, goal, (back, forth) in zip(
            start, end, (("ArrowLeft", "ArrowRight"), ("ArrowUp", "ArrowDown")), strict=True
        ):
            way = round(abs(goal - begin))
            arrow = forth if goal > begin else back
            large, rest = divmod(way, _LARGE_STEP)
            middle, small = divmod(rest, _STEP)
            self.keys(*[f"Shift+{arrow}"] * large, *[arrow] * middle, *[f"Control+{arrow}"] * small)

    def expect_captions(self, *texts: str) -> None:
        """Wait until the list has the whole image's caption and then these."""
        expect(self.captions).to_have_text([WHOLE, *texts])

    def expect_said(self, line: str) -> None:
        """Wait until a line has been said; the next one may have taken its place already."""
        whole_line = re.compile(f"^{re.escape(line)}$", re.MULTILINE)
        expect(self.status).to_have_attribute("data-said", whole_line)

    def copied(self, language: str) -> str:
        """Return what is copied as JSON or as Python."""
        self.button(f"Copy {language}").click()
        self.expect_said(f"Copied as {language}.")
        return str(self.page.evaluate("navigator.clipboard.readText()"))
