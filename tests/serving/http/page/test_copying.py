"""What is copied: JSON that the API takes, and a Python program that prints the same captions."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import expect

from runtime import Captioner
from runtime.serving.http.settings import ServiceLimits
from tests.serving.http.page.conftest import OpenStage
from tests.serving.http.page.stage import (
    CORNERS,
    MOON,
    RING,
    SCENE,
    SQUARE,
    STAR,
    TRIANGLE,
    TRIANGLE_TEXT,
    WHOLE,
    Point,
    Stage,
)
from tests.serving.http.served import served


def draw_all(stage: Stage) -> None:
    """Draw a region of each kind."""
    drawn: dict[str, Sequence[Sequence[Point]]] = {
        "Box": [TRIANGLE],
        "Box set": [SQUARE, RING],
        "Polygon": [(corner,) for corner in CORNERS],
        "Brush": [MOON],
        "Trace": [STAR],
        "Point": [((205, 530),)],
    }
    for tool, strokes in drawn.items():
        stage.tool(tool)
        for stroke in strokes:
            stage.drag(*stroke)
        if stage.button("Done").count():
            stage.button("Done").click()


def choose(stage: Stage, settings: dict[str, str]) -> None:
    """Choose settings, each of which describes some regions again."""
    for label, value in settings.items():
        control = stage.page.locator(".settings").get_by_label(label, exact=True)
        with stage.page.expect_response("**/captions"):
            if label == "Beams":
                control.fill(value)
                control.press("Tab")
            else:
                control.select_option(value)


def captions(stage: Stage) -> list[str]:
    """Return the captions of the page when all are there."""
    expect(stage.captions).to_have_count(7)
    expect(stage.captions.filter(has_text="…")).to_have_count(0)
    return stage.captions.all_text_contents()


@pytest.mark.slow
@pytest.mark.usefixtures("folder")
def test_what_is_copied_gives_the_same_captions(stage: Stage, service: str, capsys: pytest.CaptureFixture[str]) -> None:
    """As JSON that the service takes, and as a program, with settings that have their default and others."""
    draw_all(stage)
    for settings in (
        {},
        {"Beams": "3", "Boxes": "gaussian", "Traces": "attention", "Whole image": "attention"},
        {"Captions": "nearest", "Beams": "1", "Boxes": "attention"},
    ):
        choose(stage, settings)
        texts = captions(stage)
        assert answered(service, json.loads(stage.copied("JSON"))) == texts
        exec(compile(stage.copied("Python"), "captions.py", "exec"), {})
        assert capsys.readouterr().out.splitlines() == texts


def answered(service: str, asked: dict[str, Any]) -> list[str]:
    """Return the service's answer to what was copied, in which the captions are said of the regions."""
    question = {key: (None, json.dumps(value)) for key, value in asked.items()}
    files: dict[str, Any] = {"image": ("scene.jpg", SCENE.read_bytes()), **question}
    answer = httpx.post(f"{service}/v1/captions", files=files).raise_for_status().json()
    texts = [caption["text"] for caption in answer["captions"]]
    assert [caption["detection"]["class_name"] for caption in answer["captions"]] == texts
    return texts


@pytest.mark.usefixtures("folder")
def test_the_program_makes_a_large_image_smaller_as_the_page_does(
    open_stage: OpenStage, demo: Captioner, capsys: pytest.CaptureFixture[str]
) -> None:
    with served(demo, limits=ServiceLimits(pixels=250_000)) as url:
        stage = Stage(open_stage(url)[0].page, (500, 500))
        expect(stage.page.locator("#bundle")).not_to_be_empty()
        stage.open()
        stage.drag(*((x * 500 / 672, y * 500 / 672) for x, y in TRIANGLE))
        stage.expect_captions(TRIANGLE_TEXT)
        program = stage.copied("Python")
        stage.page.close()
    assert 'Image.open("scene.jpg").resize((500, 500))' in program
    exec(compile(program, "captions.py", "exec"), {})
    assert capsys.readouterr().out.splitlines() == [WHOLE, TRIANGLE_TEXT]


@pytest.fixture
def folder(demo_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder with the image and the bundle, where a user would run the program."""
    (tmp_path / "engines").mkdir()
    (tmp_path / "engines" / "demo").symlink_to(demo_bundle)
    (tmp_path / "scene.jpg").write_bytes(SCENE.read_bytes())
    monkeypatch.chdir(tmp_path)


def test_where_there_is_no_clipboard_the_text_is_shown(stage: Stage) -> None:
    stage.page.evaluate("() => { navigator.clipboard.writeText = () => Promise.reject(new Error('not allowed')); }")
    stage.button("Copy JSON").click()
    shown = stage.page.get_by_role("dialog").get_by_role("textbox")
    asked = json.loads(shown.input_value())
    assert [region["kind"] for region in asked["regions"]] == ["whole_image"]
    stage.button("Close").click()
    expect(shown).to_be_hidden()
