"""One browser and one service for all tests of the page; a page of its own for each."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any, TypeAlias

import pytest
from playwright.sync_api import Browser, Page

from runtime import Captioner
from tests.serving.http.page.browser import Watch, executable, launched, opened
from tests.serving.http.page.stage import SCENE, Stage
from tests.serving.http.served import served

OpenStage: TypeAlias = Callable[..., tuple[Stage, Watch]]
_CLIPBOARD = ["clipboard-read", "clipboard-write"]
_FRAMES = 4


@pytest.fixture(scope="package")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """The machine's Chromium, whose camera shows the sample: there in CI, and wherever somebody has installed it."""
    if executable() is None:
        told = "no Chromium: .ci/install-browser installs it"
        if os.environ.get("CI"):
            pytest.fail(told)
        pytest.skip(told)
    camera = tmp_path_factory.mktemp("camera") / "scene.mjpeg"
    camera.write_bytes(SCENE.read_bytes() * _FRAMES)
    with launched(camera) as browser:
        yield browser


@pytest.fixture(scope="package")
def service(demo: Captioner) -> Iterator[str]:
    with served(demo) as url:
        yield url


@pytest.fixture
def open_stage(browser: Browser, service: str) -> Iterator[OpenStage]:
    """A function that opens the page, by default of the shared service, in a context with the settings given."""
    with ExitStack() as stack:

        def open(
            url: str = service, prepare: Callable[[Page], object] = lambda _: None, **settings: Any
        ) -> tuple[Stage, Watch]:
            context = {"viewport": {"width": 1100, "height": 760}, "permissions": _CLIPBOARD, **settings}
            page, watch = stack.enter_context(opened(browser, url, prepare, **context))
            return Stage(page), watch

        yield open


@pytest.fixture
def stage(open_stage: OpenStage) -> Stage:
    """The page with the sample scene and its caption."""
    stage, _ = open_stage()
    stage.open()
    return stage


@pytest.fixture
def page(open_stage: OpenStage) -> Page:
    """The page without an image."""
    return open_stage()[0].page
