"""The picture of the page in the README and the documents is made by the code here."""

from __future__ import annotations

import pytest
from PIL import Image
from playwright.sync_api import Browser

from tests.conftest import ROOT
from tests.serving.http.page.pictures import draw

_MAX_BYTES = 120_000


@pytest.mark.slow
def test_the_picture_is_drawn(browser: Browser, service: str) -> None:
    """Not compared pixel by pixel: fonts and times differ from machine to machine."""
    drawn = draw(browser, service)
    committed = ROOT / "docs" / "page.jpg"
    with Image.open(committed) as picture:
        assert picture.size == drawn.size
    assert committed.stat().st_size < _MAX_BYTES
