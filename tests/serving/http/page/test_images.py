"""Where images come from: opened, pasted, dropped; what is too large; the live camera."""

from __future__ import annotations

import base64
import re
from pathlib import Path

import pytest
from PIL import Image
from playwright.sync_api import Request, expect

from runtime import Captioner
from runtime.serving.http.settings import ServiceLimits
from tests.serving.http.page.conftest import OpenStage
from tests.serving.http.page.stage import SCENE, TRIANGLE, TRIANGLE_TEXT, WHOLE, Stage
from tests.serving.http.served import served


def test_an_image_is_opened_by_the_button(open_stage: OpenStage) -> None:
    stage, _ = open_stage()
    with stage.page.expect_file_chooser() as chooser:
        stage.button("Open image").first.click()
    chooser.value.set_files(SCENE)
    expect(stage.captions).to_have_text([WHOLE])
    expect(stage.page.get_by_text("drop it here")).to_be_hidden()


def test_another_image_takes_the_place_of_the_first(stage: Stage, tmp_path: Path) -> None:
    stage.drag(*TRIANGLE)
    stage.expect_captions(TRIANGLE_TEXT)
    with Image.open(SCENE) as scene:
        scene.crop((276, 174, 507, 399)).save(tmp_path / "part.png")
    with stage.page.expect_request(lambda request: request.method == "DELETE"):
        stage.open(tmp_path / "part.png")
    expect(stage.captions).to_have_count(1)
    expect(stage.captions).not_to_have_text("…")
    expect(stage.button("Undo")).to_be_disabled()


def test_an_image_that_is_opened_while_another_is_encoded_takes_its_place(
    open_stage: OpenStage, tmp_path: Path
) -> None:
    stage, _ = open_stage()
    with Image.open(SCENE) as scene:
        scene.crop((276, 174, 507, 399)).save(tmp_path / "part.png")
    held = stage.hold_first("**/v1/features")
    with stage.page.expect_request("**/v1/features"):
        stage.open(tmp_path / "part.png")
    stage.open()
    with stage.page.expect_request(lambda request: request.method == "DELETE"):
        held[0].continue_()
    stage.drag(*TRIANGLE)
    stage.expect_captions(TRIANGLE_TEXT)
    assert len(held) == 2


def test_an_image_is_pasted(open_stage: OpenStage) -> None:
    stage, _ = open_stage()
    stage.page.evaluate(
        """async (encoded) => {
            const bitmap = await createImageBitmap(new Blob([Uint8Array.from(atob(encoded), (c) => c.charCodeAt(0))]));
            const canvas = new OffscreenCanvas(bitmap.width, bitmap.height);
            canvas.getContext("2d").drawImage(bitmap, 0, 0);
            const png = await canvas.convertToBlob({type: "image/png"});
            await navigator.clipboard.write([new ClipboardItem({"image/png": png})]);
        }""",
        base64.b64encode(SCENE.read_bytes()).decode(),
    )
    stage.page.keyboard.press("Control+v")
    expect(stage.captions).to_have_text([WHOLE])


def test_an_image_is_dropped(open_stage: OpenStage) -> None:
    stage, _ = open_stage()
    session = stage.page.context.new_cdp_session(stage.page)
    data = {"items": [], "files": [str(SCENE)], "dragOperationsMask": 1}
    for kind in ("dragEnter", "dragOver", "drop"):
        session.send("Input.dispatchDragEvent", {"type": kind, "x": 300, "y": 400, "data": data})
    expect(stage.captions).to_have_text([WHOLE])
    expect(stage.page.locator("body.is-dropping")).to_have_count(0)


def test_a_photograph_lies_as_its_camera_was_held(open_stage: OpenStage, tmp_path: Path) -> None:
    """The page and the service turn it alike: a box around the triangle in the turned image is the triangle."""
    with Image.open(SCENE) as scene:
        turned = scene.crop((0, 0, 672, 500)).transpose(Image.Transpose.ROTATE_90)
    orientation = turned.getexif()
    orientation[0x0112] = 6  # to be turned clockwise
    turned.save(tmp_path / "photo.jpg", exif=orientation, quality=95)
    page = open_stage()[0].page
    stage = Stage(page, (672, 500))
    stage.open(tmp_path / "photo.jpg")
    stage.drag(*TRIANGLE)
    expect(stage.captions.last).to_have_text(TRIANGLE_TEXT)


@pytest.mark.parametrize(
    ("limits", "note", "image_wh"),
    [
        (ServiceLimits(pixels=250_000), "500 × 500, made smaller from 672 × 672", (500, 500)),
        (ServiceLimits(bytes=40_000), ", made smaller from 672 × 672", (336, 336)),
        (ServiceLimits(bytes=150_000), "672 × 672, sent as JPEG", (672, 672)),
    ],
)
def test_an_image_beyond_the_limits_is_made_smaller_and_that_is_said(
    open_stage: OpenStage, demo: Captioner, tmp_path: Path, limits: ServiceLimits, note: str, image_wh: tuple[int, int]
) -> None:
    with Image.open(SCENE) as scene:
        scene.save(tmp_path / "scene.png")
    with served(demo, limits=limits) as url:
        stage = Stage(open_stage(url)[0].page, image_wh)
        expect(stage.page.locator("#bundle")).not_to_be_empty()
        stage.open(tmp_path / "scene.png")
        expect(stage.page.locator("#facts")).to_contain_text(note)
        scale = image_wh[0] / 672
        stage.drag(*((x * scale, y * scale) for x, y in TRIANGLE))
        stage.expect_captions(TRIANGLE_TEXT)
        stage.page.close()


@pytest.mark.slow
def test_the_camera_is_described_live_one_frame_at_a_time(open_stage: OpenStage) -> None:
    stage, _ = open_stage()
    frames, most = set[Request](), [0]

    def begin(request: Request) -> None:
        if request.url.endswith("/v1/captions"):
            frames.add(request)
            most[0] = max(most[0], len(frames))

    stage.page.on("request", begin)
    stage.page.on("requestfinished", lambda request: frames.discard(request))
    stage.button("Camera").click()
    expect(stage.captions).to_have_text([WHOLE])
    expect(stage.page.locator("#facts")).to_contain_text(re.compile(r"Latency[\d.]+ ms, [\d.]+ frames/s"))
    stage.drag(*TRIANGLE)
    stage.expect_captions(TRIANGLE_TEXT)
    stage.hover((205, 530))
    expect(stage.bubble).to_have_text("a large solid green square")
    with stage.page.expect_request("**/v1/features"):
        stage.button("Stop camera").click()
    stage.expect_captions(TRIANGLE_TEXT)
    expect(stage.page.locator("#facts")).not_to_contain_text("frames/s")
    assert most == [1]
    stage.hover((205, 530))
    expect(stage.bubble).to_have_text("a large solid green square")


_TWO_CAMERAS = """
const devices = navigator.mediaDevices;
const [list, open] = [devices.enumerateDevices.bind(devices), devices.getUserMedia.bind(devices)];
const other = {kind: "videoinput", deviceId: "other", label: "Other camera"};
window.asked = [];
devices.enumerateDevices = async () => [...await list(), other];
devices.getUserMedia = ({video}) => {
    window.asked.push(video.deviceId?.exact ?? "");
    return open({video: true});
};
"""


def test_another_camera_is_chosen(open_stage: OpenStage) -> None:
    stage, _ = open_stage(prepare=lambda page: page.add_init_script(_TWO_CAMERAS))
    stage.button("Camera").click()
    expect(stage.captions).to_have_text([WHOLE])
    stage.page.get_by_label("Which camera").select_option("Other camera")
    stage.page.wait_for_function("window.asked.length === 2")
    assert stage.page.evaluate("window.asked") == ["", "other"]
    stage.drag(*TRIANGLE)
    stage.expect_captions(TRIANGLE_TEXT)


_REFUSALS = {
    "NotAllowedError": "The camera is not allowed: allow it for this page in the browser.",
    "NotFoundError": "No camera was found.",
    "NotReadableError": "The camera is in use by another program.",
    "AbortError": "The camera cannot be opened: as a test wants it",
}


def test_a_camera_that_cannot_be_is_an_error_in_one_line(stage: Stage) -> None:
    for name, told in _REFUSALS.items():
        stage.page.evaluate(
            """(name) => {
                const refuse = async () => { throw new DOMException("as a test wants it", name); };
                navigator.mediaDevices.getUserMedia = refuse;
            }""",
            name,
        )
        stage.button("Camera").click()
        expect(stage.error).to_have_text(told)
        expect(stage.button("Camera")).to_be_visible()
    stage.expect_captions()


def test_opening_an_image_turns_the_camera_off(open_stage: OpenStage) -> None:
    stage, _ = open_stage()
    stage.button("Use camera").click()
    expect(stage.button("Stop camera")).to_be_visible()
    stage.open()
    expect(stage.button("Camera")).to_be_visible()
    assert stage.page.evaluate("document.getElementById('video').srcObject") is None
    stage.drag(*TRIANGLE)
    stage.expect_captions(TRIANGLE_TEXT)
