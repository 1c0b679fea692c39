"""Makes the picture of the page for the README and the documents: run it with `python -m`.

It needs `make demo`, and the browser that `.ci/install-browser` installs.
"""

from __future__ import annotations

import io
import sys
import tempfile
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, Page, expect

from runtime import Captioner
from tests.conftest import ROOT
from tests.serving.http.page.browser import launched, opened
from tests.serving.http.page.stage import MOON, PAIR_TEXT, RING, SCENE, SQUARE, STAR, TRIANGLE, TRIANGLE_TEXT, Stage
from tests.serving.http.served import served

_WIDE, _PHONE = {"width": 1240, "height": 780}, {"width": 360, "height": 780}
_GAP = 16
_WIDTH = 1280
"""Of the picture, in pixels."""
_QUALITY = 78


def draw(browser: Browser, service: str) -> Image.Image:
    """Return the page in a wide window in light colours, and beside it on a phone in dark ones."""
    with opened(browser, service, lambda _: None, viewport=_WIDE, color_scheme="light") as (page, _):
        wide = _wide(page)
    with opened(browser, service, lambda _: None, viewport=_PHONE, color_scheme="dark", has_touch=True) as (page, _):
        narrow = _narrow(page)
    both = Image.new("RGB", (wide.width + _GAP + narrow.width, wide.height), "white")
    both.paste(wide, (0, 0))
    both.paste(narrow, (wide.width + _GAP, 0))
    return both.resize((_WIDTH, round(both.height * _WIDTH / both.width)), Image.Resampling.LANCZOS)


def _wide(page: Page) -> Image.Image:
    """Draw a region of several kinds, and hold the cursor over the square."""
    stage = Stage(page)
    stage.open()
    stage.drag(*TRIANGLE)
    stage.tool("Trace")
    stage.drag(*STAR)
    stage.tool("Brush")
    stage.drag(*MOON)
    stage.button("Done").click()
    stage.tool("Box")
    expect(stage.captions).to_have_count(4)
    expect(stage.captions.filter(has_text="…")).to_have_count(0)
    stage.page.locator(".choose").nth(1).click()
    stage.hover((205, 530))
    expect(stage.bubble).to_have_text("a large solid green square")
    expect(stage.status).to_have_text("a large solid green square")
    return _shot(page)


def _narrow(page: Page) -> Image.Image:
    stage = Stage(page)
    stage.open()
    stage.button("Box set").tap()
    stage.touch(*SQUARE)
    stage.touch(*RING)
    stage.button("Done").tap()
    stage.button("Box").tap()
    stage.touch(*TRIANGLE)
    stage.expect_captions(PAIR_TEXT, TRIANGLE_TEXT)
    expect(stage.status).to_have_text(f"Box: {TRIANGLE_TEXT}")
    page.evaluate("scrollTo(0, 0)")
    return _shot(page)


def _shot(page: Page) -> Image.Image:
    return Image.open(io.BytesIO(page.screenshot())).convert("RGB")


def main(path: Path) -> None:
    """Write the picture."""
    with (
        tempfile.TemporaryDirectory() as folder,
        Captioner.load(ROOT / "engines" / "demo", "cpu") as captioner,
        served(captioner) as service,
    ):
        camera = Path(folder) / "scene.mjpeg"
        camera.write_bytes(SCENE.read_bytes())
        with launched(camera) as browser:
            draw(browser, service).save(path, quality=_QUALITY, optimize=True, progressive=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
