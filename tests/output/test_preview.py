"""The preview window, on a real X server without a screen."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageGrab

from runtime import Caption, Frame, FrameCaptions, PatchcaptionError
from runtime.cli.main import main
from runtime.output.preview import PreviewWindow
from tests.conftest import write_clip

RED = (255, 0, 0)


@pytest.fixture(scope="module")
def display() -> Iterator[str]:
    """An X server: there in CI, and wherever somebody has installed it."""
    if shutil.which("Xvfb") is None or importlib.util.find_spec("_tkinter") is None:
        told = "no Xvfb, or no tkinter in this Python; .ci/install-rtsp-server installs the former"
        if os.environ.get("CI"):
            pytest.fail(told)
        pytest.skip(told)
    read_end, write_end = os.pipe()
    command = ["Xvfb", "-displayfd", str(write_end), "-screen", "0", "640x480x24", "-nolisten", "tcp"]
    with subprocess.Popen(command, pass_fds=[write_end], stderr=subprocess.DEVNULL) as server:
        os.close(write_end)
        with os.fdopen(read_end) as numbers:
            yield f":{numbers.readline().strip()}"
        server.terminate()


@pytest.fixture
def window(display: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[PreviewWindow]:
    monkeypatch.setenv("DISPLAY", display)
    with PreviewWindow("a test") as window:
        yield window


def described(size_wh: tuple[int, int], text: str = "a dog") -> FrameCaptions:
    return FrameCaptions(Frame(0, 0.0, Image.new("RGB", size_wh, RED)), [Caption(text, 0.5, ())], 0, 0.0)


def red_pixels(display: str) -> int:
    shot = np.asarray(ImageGrab.grab(xdisplay=display).convert("RGB"))
    return int((shot == RED).all(axis=-1).sum())


def press(window: PreviewWindow, key: str) -> None:
    window._root.focus_force()
    window._root.update()
    window._root.event_generate("<Key>", keysym=key)
    window.update()


def close_by_its_button(window: PreviewWindow) -> None:
    window._root.tk.call(window._root.protocol("WM_DELETE_WINDOW"))


def test_frames_are_shown_with_their_captions(window: PreviewWindow, display: str) -> None:
    window.add(described((200, 100), ""))
    plain = red_pixels(display)
    assert 19_000 < plain <= 20_000
    window.add(described((200, 100)))
    assert 0.2 * plain < red_pixels(display) < plain
    window.add(described((3000, 300), ""))
    assert 31_000 < red_pixels(display) <= 576 * 57, "nine tenths of the screen"
    window.add(FrameCaptions(Frame(1, 0.0, b"no image"), [], 0, 0.0, "it is no image"))
    assert window.is_open


@pytest.mark.parametrize(
    "leave",
    [
        lambda window: press(window, "q"),
        lambda window: press(window, "Escape"),
        close_by_its_button,
    ],
)
def test_the_user_ends_it(window: PreviewWindow, leave: Callable[[PreviewWindow], None]) -> None:
    window.add(described((40, 40)))
    press(window, "x")
    assert window.is_open
    leave(window)
    assert not window.is_open
    window.update()
    window.add(described((40, 40)))


def test_a_display_that_goes_ends_it_too(window: PreviewWindow) -> None:
    window._root.destroy()
    window.update()
    assert not window.is_open


def test_the_command_ends_whole_when_its_window_is_closed(
    demo_bundle: Path, tmp_path: Path, display: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip = write_clip(tmp_path / "clip.mp4", [Image.new("RGB", (160, 120), RED)] * 40)
    add, shown = PreviewWindow.add, list[int]()

    def show(window: PreviewWindow, described: FrameCaptions) -> None:
        add(window, described)
        shown.append(described.frame.number)
        if len(shown) == 3:
            press(window, "q")

    monkeypatch.setenv("DISPLAY", display)
    monkeypatch.setattr(PreviewWindow, "add", show)
    lines = tmp_path / "lines.jsonl"
    lines.write_text("old")
    assert main(["video", str(clip), "--bundle", str(demo_bundle), "--whole", "--show", "--jsonl", str(lines)]) == 0
    assert shown == [0, 1, 2]
    assert [json.loads(line)["frame"] for line in lines.read_text().splitlines()] == [0, 1, 2]
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.skipif(importlib.util.find_spec("_tkinter") is None, reason="no tkinter in this Python")
def test_without_a_display_there_is_an_error_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("DISPLAY", raising=False)
    clip = write_clip(tmp_path / "clip.mp4", [Image.new("RGB", (160, 120), RED)])
    assert main(["video", str(clip), "--bundle", "nowhere", "--show"]) == 1
    assert capsys.readouterr().err == (
        "patchcaption: error: a window needs a display: no display name and no $DISPLAY environment variable\n"
    )


def test_without_tkinter_the_error_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tkinter", None)
    with pytest.raises(PatchcaptionError, match="a window needs tkinter, .*: apt install python3-tk, for example"):
        PreviewWindow("a test")
