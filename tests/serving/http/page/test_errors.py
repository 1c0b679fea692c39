"""Errors in one line: of files, of a service that ends, is busy, wants a token or drops an image, and of regions."""

from __future__ import annotations

import json
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Page, Route, expect

from runtime import Captioner
from runtime.serving.http.settings import Access
from tests.serving.http.page.conftest import OpenStage
from tests.serving.http.page.stage import SCENE, STAR, STAR_TEXT, TRIANGLE, TRIANGLE_TEXT, Stage
from tests.serving.http.served import served

TOKEN = "a-token-of-the-tests-0123456789"
GONE = "The service does not answer: it has ended, or the network is down."


def test_a_file_that_is_no_image(stage: Stage, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no image", encoding="utf-8")
    stage.open(tmp_path / "notes.txt")
    expect(stage.error).to_have_text("notes.txt: not an image that this browser can open.")
    expect(stage.button("Try again")).to_have_count(0)
    stage.expect_captions()
    stage.button("Dismiss").click()
    expect(stage.error).to_be_hidden()


def test_an_image_that_the_service_refuses(open_stage: OpenStage) -> None:
    stage, watch = open_stage()
    watch.allow()
    stage.page.route(
        "**/v1/features",
        lambda route: route.fulfill(status=400, json={"error": "image: expected an image, got a test"}),
        times=1,
    )
    stage.page.set_input_files("#file", SCENE)
    expect(stage.error).to_have_text("image: expected an image, got a test")
    stage.hover((100, 100))
    stage.open()
    expect(stage.error).to_be_hidden()


def test_an_image_that_the_service_sees_otherwise_than_the_browser(open_stage: OpenStage) -> None:
    """As an icon of several sizes may be: regions would lie elsewhere."""
    answer = {"id": "0", "image": {"width": 64, "height": 32}, "timing_ms": {"encode": 1.0}}
    stage, _ = open_stage()
    stage.page.route("**/v1/features", lambda route: route.fulfill(status=201, json=answer))
    stage.page.set_input_files("#file", SCENE)
    told = "scene.jpg: it has 64 × 32 pixels to the service, 672 × 672 to the browser: convert it to JPEG or PNG."
    expect(stage.error).to_have_text(told)


def test_a_service_that_has_ended(open_stage: OpenStage, demo: Captioner) -> None:
    with served(demo) as url:
        stage, watch = open_stage(url)
        stage.open()
    watch.allow()
    stage.drag(*TRIANGLE)
    expect(stage.error).to_have_text(GONE)
    expect(stage.captions.last).to_have_text("…")


@pytest.mark.parametrize("by_itself", [True, False])
def test_a_service_that_comes_back(open_stage: OpenStage, by_itself: bool) -> None:
    """What was missing is asked for again: by a button, and when anything else is answered."""
    stage, watch = open_stage()
    watch.allow()
    stage.open()
    stage.page.route("**/v1/**", lambda route: route.abort())
    stage.drag(*TRIANGLE)
    expect(stage.error).to_have_text(GONE)
    stage.page.mouse.move(1, 1)
    stage.page.unroute("**/v1/**")
    if by_itself:
        stage.hover((100, 100))
    else:
        stage.button("Try again").click()
    stage.expect_captions(TRIANGLE_TEXT)
    expect(stage.error).to_be_hidden()


def test_a_service_that_is_busy_is_asked_again(open_stage: OpenStage) -> None:
    stage, watch = open_stage()
    watch.allow()
    stage.open()
    stage.page.route(
        "**/captions",
        lambda route: route.fulfill(status=429, headers={"Retry-After": "1"}, json={"error": "queue: full"}),
        times=1,
    )
    stage.marks.focus()
    stage.keys("b", "Space", "Shift+ArrowRight", "Shift+ArrowDown", "Space")
    stage.expect_said("The service is busy: trying again in 1 s.")
    expect(stage.captions.last).not_to_have_text("…")
    expect(stage.error).to_be_hidden()


def test_an_image_that_the_service_has_dropped_is_encoded_again(open_stage: OpenStage, service: str) -> None:
    stage, watch = open_stage()
    watch.allow()
    with stage.page.expect_response("**/v1/features") as encoded:
        stage.open()
    httpx.delete(f"{service}/v1/features/{encoded.value.json()['id']}").raise_for_status()
    with stage.page.expect_response("**/v1/features") as again:
        stage.drag(*TRIANGLE)
    assert again.value.status == 201
    stage.expect_captions(TRIANGLE_TEXT)
    expect(stage.error).to_be_hidden()


def test_a_region_that_cannot_be_has_its_error_and_the_others_their_captions(stage: Stage) -> None:
    def move_outside(route: Route) -> None:
        asked = json.loads(route.request.post_data or "")
        for region in asked["regions"]:
            if region["kind"] == "box":
                region["xyxy"] = [9000, 9000, 9100, 9100]
        route.continue_(post_data=json.dumps(asked))

    stage.page.route("**/captions", move_outside)
    stage.drag(*TRIANGLE)
    expect(stage.page.locator(".has-error .text")).to_contain_text("lies outside the image of 672 x 672 pixels")
    stage.tool("Trace")
    stage.drag(*STAR)
    expect(stage.captions.last).to_have_text(STAR_TEXT)
    expect(stage.error).to_be_hidden()


def test_a_token_is_asked_for_and_kept_while_the_window_is_open(open_stage: OpenStage, demo: Captioner) -> None:
    with served(demo, Access(token=TOKEN)) as url:
        stage, watch = open_stage(url)
        watch.allow()
        field = stage.page.get_by_label("Access token")
        expect(field).to_be_focused()
        expect(stage.error).not_to_be_empty()
        field.fill("wrong")
        field.press("Enter")
        expect(field).to_be_focused()
        field.fill(TOKEN)
        stage.button("Use token").click()
        expect(stage.page.locator("#bundle")).to_have_text("demo · dinov2_vitdemo14_reg")
        expect(stage.error).to_be_hidden()
        expect(field).to_be_hidden()
        stage.page.reload()
        stage.open()
        expect(field).to_be_hidden()
        kept = stage.page.evaluate("[Object.values({...sessionStorage}), localStorage.length, document.cookie]")
        assert kept == [[TOKEN], 0, ""]
        stage.page.close()


@pytest.mark.parametrize("status", [401, 500])
def test_answers_that_are_no_json(open_stage: OpenStage, status: int) -> None:
    """As of a proxy in between."""

    def refuse(page: Page) -> None:
        page.route("**/v1/info", lambda route: route.fulfill(status=status, body="<html>no</html>"))

    stage, watch = open_stage(prepare=refuse)
    watch.allow()
    expect(stage.error).to_contain_text(f"The service answers {status}")
