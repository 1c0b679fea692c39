"""The browser of the machine, and what its pages must not do: ask elsewhere, break their policy, log errors."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, ConsoleMessage, Page, Request, expect, sync_playwright

_NAMES = ("chromium", "chromium-browser", "google-chrome")
_TIMEOUT_MS = 20_000
"""Of what is waited for, on a machine that is busy with other tests."""
expect.set_options(timeout=_TIMEOUT_MS)
_FAILED = "Failed to load resource"
"""What the browser logs of every answer that is an error."""


def executable() -> str | None:
    """Return the path of Chromium on this machine; None if there is none."""
    return next(filter(None, map(shutil.which, _NAMES)), None)


@contextmanager
def launched(camera: Path) -> Iterator[Browser]:
    """Launch the browser with a camera that shows an .mjpeg file and is allowed to every page."""
    flags = [
        "--no-sandbox",  # which root cannot have
        "--use-fake-ui-for-media-stream",
        "--use-fake-device-for-media-stream=fps=10",
        f"--use-file-for-fake-video-capture={camera}",
    ]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable(), args=flags)
        try:
            yield browser
        finally:
            browser.close()


class Watch:
    """All that went wrong in a page without being shown, and where it asked."""

    def __init__(self, page: Page, service: str) -> None:
        self._told: list[tuple[str, str]] = []
        """What the console says, and the line that says so."""
        self._others: list[str] = []
        self._allowed: list[str] = []
        self._service = service
        page.on("console", self._log)
        page.on("pageerror", lambda error: self._others.append(f"exception: {error.stack or error.message}"))
        page.on("request", self._ask)

    @property
    def problems(self) -> list[str]:
        """All in lines, but for what the console may say."""
        told = [line for text, line in self._told if not any(re.search(pattern, text) for pattern in self._allowed)]
        return told + self._others

    def allow(self, pattern: str = _FAILED) -> None:
        """Let the console say, and have said, what a test provokes."""
        self._allowed.append(pattern)

    def _log(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self._told.append((message.text, f"console: {message.text} ({message.location['url']})"))

    def _ask(self, request: Request) -> None:
        if not request.url.startswith((f"{self._service}/", f"blob:{self._service}/", "data:")):
            self._others.append(f"asked elsewhere: {request.url}")


@contextmanager
def opened(
    browser: Browser, service: str, prepare: Callable[[Page], object], **settings: Any
) -> Iterator[tuple[Page, Watch]]:
    """Open the page in a context of its own; fail at the end if anything went wrong in it.

    Args:
        prepare: called with the page before anything is loaded.
        settings: of the context.
    """
    with browser.new_context(**settings) as context:
        context.set_default_timeout(_TIMEOUT_MS)
        page = context.new_page()
        watch = Watch(page, service)
        prepare(page)
        page.goto(service)
        yield page, watch
        assert not watch.problems, watch.problems
