"""The calls of the service: what they answer, word for word."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Mapping
from threading import Event
from typing import Any

import httpx
import pytest

from runtime import Box, Caption, Captioner, Point, WholeImage
from runtime.features import RegionVectors
from runtime.output.as_json import caption_as_json
from tests.conftest import SAMPLE

TRIANGLE = {"kind": "box", "xyxy": [276, 174, 507, 399]}
SQUARE = {"kind": "point", "x": 200, "y": 500}
OUTSIDE = {"kind": "point", "x": 9000, "y": 10}


def as_form(image: bytes, **fields: object) -> dict[str, Any]:
    parts = {name: (None, json.dumps(value)) for name, value in fields.items()}
    return {"files": {"image": ("scene.jpg", image, "image/jpeg"), **parts}}


def as_json(image: bytes, **fields: object) -> dict[str, Any]:
    return {"json": {"image": base64.b64encode(image).decode(), **fields}}


def answer_of(response: httpx.Response, status: int = 200) -> dict[str, Any]:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    answer: dict[str, Any] = response.json()
    return answer


@pytest.fixture
def features(client: httpx.Client, scene_file: bytes) -> str:
    """The path of the sample's feature map."""
    return f"/v1/features/{answer_of(client.post('/v1/features', **as_form(scene_file)), 201)['id']}"


@pytest.mark.parametrize("body", [as_form, as_json])
def test_captions_of_an_image_are_those_of_the_library(
    body: Any, client: httpx.Client, scene_file: bytes, demo: Captioner
) -> None:
    answer = answer_of(
        client.post("/v1/captions", **body(scene_file, regions=[TRIANGLE, SQUARE], options={"n_best": 2}))
    )
    expected = demo.caption(SAMPLE / "scene.jpg", [Box(276, 174, 507, 399), Point(200, 500)], n_best=2)
    assert [caption["text"] for caption in answer["captions"]] == [
        "a large striped red triangle",
        "a large solid green square",
    ]
    for got, caption in zip(answer["captions"], expected, strict=True):
        wanted = caption_as_json(caption)
        assert got.pop("score") == pytest.approx(wanted.pop("score"), abs=1e-5)
        for near, expected_near in zip(got.pop("nearest"), wanted.pop("nearest"), strict=True):  # type: ignore[call-overload]
            assert near["text"] == expected_near["text"]
        assert got == wanted
    assert answer["image"] == {"width": 672, "height": 672}
    assert set(answer["timing_ms"]) == {"encode", "describe"}


def test_without_regions_the_whole_image_is_described(client: httpx.Client, scene_file: bytes, demo: Captioner) -> None:
    (caption,) = answer_of(client.post("/v1/captions", **as_form(scene_file)))["captions"]
    assert caption["text"] == demo.caption(SAMPLE / "scene.jpg", [WholeImage()])[0].text


def test_features_are_asked_again_without_another_pass(
    features: str, client: httpx.Client, demo: Captioner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo.pipeline.encoder, "run", None)
    monkeypatch.setattr(type(demo.pipeline.encoder), "__call__", None)
    for region, text in ((TRIANGLE, "a large striped red triangle"), (SQUARE, "a large solid green square")):
        answer = answer_of(client.post(f"{features}/captions", json={"regions": [region]}))
        assert [caption["text"] for caption in answer["captions"]] == [text]
        assert set(answer["timing_ms"]) == {"describe"}


@pytest.mark.parametrize("content_type", ["image/jpeg", "application/octet-stream"])
def test_an_image_may_be_the_body_itself(content_type: str, client: httpx.Client, scene_file: bytes) -> None:
    posted = client.post("/v1/features", content=scene_file, headers={"content-type": content_type})
    answer = answer_of(posted, 201)
    assert posted.headers["location"] == f"/v1/features/{answer['id']}"
    assert answer_of(client.get(posted.headers["location"])) == {
        name: answer[name] for name in ("id", "image", "bytes", "expires_in_s")
    }


def test_a_region_that_cannot_be_is_an_error_of_its_row(features: str, client: httpx.Client) -> None:
    body = json.dumps({"regions": [TRIANGLE, OUTSIDE, {"kind": "box", "xyxy": [1, 2, float("nan"), 4]}, {}, SQUARE]})
    captions = answer_of(
        client.post(f"{features}/captions", content=body, headers={"content-type": "application/json"})
    )["captions"]
    assert [caption["text"] for caption in captions] == [
        "a large striped red triangle",
        "",
        "",
        "",
        "a large solid green square",
    ]
    assert captions[1]["error"] == "Point(x=9000.0, y=10.0) lies outside the image of 672 x 672 pixels"
    assert captions[2]["error"] == "box xyxy[2]: expected a finite number, got nan"
    assert "expected a region with one of the keys" in captions[3]["error"]
    assert "error" not in captions[4]


def test_a_deleted_feature_map_is_gone_and_says_so(features: str, client: httpx.Client) -> None:
    assert client.delete(features).status_code == 204
    for answer in (client.get(features), client.delete(features), client.post(f"{features}/captions", json={})):
        assert answer_of(answer, 404)["error"].endswith("it was deleted")


def test_where_cls_looks_is_a_grid_on_the_image(features: str, client: httpx.Client, demo: Captioner) -> None:
    answer = answer_of(client.get(f"{features}/attention"))
    canvas = demo.encode(SAMPLE / "scene.jpg").canvases[0]
    assert (answer["rows"], answer["columns"], answer["xyxy"]) == (16, 16, [0, 0, 672, 672])
    assert sum(map(sum, answer["weights"])) == pytest.approx(1, abs=1e-5)
    for row, expected in zip(answer["weights"], canvas.attention, strict=True):
        assert row == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("content", "content_type", "status", "error"),
    [
        (b"{", "application/json", 400, "body: expected JSON: "),
        (b"[" * 100_000, "application/json", 400, "body: expected JSON, got some that is nested too deeply"),
        (b"[]", "application/json", 400, "body: expected a JSON object, got list"),
        (b"{}", "application/json", 400, 'body: expected an "image", got none'),
        (b'{"image": 3}', "application/json", 400, "image: expected base64, got int"),
        (b'{"image": "&"}', "application/json", 400, "image: expected base64 (RFC 4648, section 4)"),
        (b'{"image": "http://example.org/a.jpg"}', "application/json", 400, "image: expected base64"),
        (b'{"image": "aGVsbG8="}', "application/json", 400, "image: not an image that Pillow can read"),
        (b'{"image": "aGVsbG8=", "url": ""}', "application/json", 400, "body: expected image, regions, options, got"),
        (b"\xff", "application/json", 400, "body: expected JSON: "),
        (b"hello", "text/plain", 415, "Content-Type 'text/plain': expected multipart/form-data, application/json"),
        (b"hello", "", 415, "Content-Type ''"),
        (b"hello", "image/png", 400, "image: not an image that Pillow can read"),
        (b"", "image/png", 400, 'body: expected an "image", got none'),
        (b"--x", "multipart/form-data", 400, "Content-Type: expected a boundary"),
        (b"--x", "multipart/form-data; boundary=x", 400, "body: expected multipart/form-data"),
        (b"hello", "multipart/form-data; boundary=x", 400, "body: expected multipart/form-data"),
    ],
)
def test_a_body_that_cannot_be_read_is_refused_in_one_line(
    content: bytes, content_type: str, status: int, error: str, client: httpx.Client
) -> None:
    headers: Mapping[str, str] = {"content-type": content_type}
    answer = answer_of(client.post("/v1/captions", content=content, headers=headers), status)
    assert set(answer) == {"error"}
    assert answer["error"].startswith(error)
    assert "\n" not in answer["error"]


@pytest.mark.parametrize(
    ("question", "status", "error"),
    [
        ({"regions": "all"}, 400, "regions: expected a list of regions, got str"),
        ({"regions": None}, 400, "regions: expected a list of regions, got NoneType"),
        ({"regions": [TRIANGLE], "options": []}, 400, "options: expected a JSON object, got list"),
        ({"regions": [TRIANGLE], "options": {"beams": 0}}, 400, "beams: expected a whole number from 1 to 256, got 0"),
        ({"regions": [TRIANGLE], "options": {"colour": 1}}, 400, "options: expected some of "),
        ({"regions": [TRIANGLE], "options": {"prompt_padding": "reference"}}, 400, "prompt_padding="),
        ({"region": []}, 400, "body: expected image, regions, options, got 'region'"),
        ({"image": "aGVsbG8="}, 400, "image: it was encoded before; give regions and options alone"),
    ],
)
def test_a_question_that_cannot_be_is_refused_in_one_line(
    question: dict[str, Any], status: int, error: str, features: str, client: httpx.Client
) -> None:
    assert answer_of(client.post(f"{features}/captions", json=question), status)["error"].startswith(error)


def test_regions_of_several_clients_are_decoded_together(
    features: str, url: str, demo: Captioner, monkeypatch: pytest.MonkeyPatch
) -> None:
    describe, sizes, num_waiting = demo.pipeline.describe_vectors, list[int](), 7
    all_wait = Event()

    def count(vectors: RegionVectors, *rest: Any) -> list[Caption]:
        if not sizes:  # the first one keeps the decoder busy until the others have come
            assert all_wait.wait(30)
        sizes.append(len(vectors))
        return describe(vectors, *rest)

    pool = demo.pipeline.pool
    pooled = list[int]()

    def count_pooled(*arguments: Any) -> Any:
        pooled.append(1)
        if len(pooled) == num_waiting + 1:
            all_wait.set()
        return pool(*arguments)

    async def ask() -> list[httpx.Response]:
        async with httpx.AsyncClient(base_url=url, timeout=60) as client:
            asked = [client.post(f"{features}/captions", json={"regions": [TRIANGLE]}) for _ in range(num_waiting + 1)]
            return await asyncio.gather(*asked)

    monkeypatch.setattr(demo.pipeline, "describe_vectors", count)
    monkeypatch.setattr(demo.pipeline, "pool", count_pooled)
    answers = [answer_of(answer)["captions"][0]["text"] for answer in asyncio.run(ask())]
    assert answers == ["a large striped red triangle"] * (num_waiting + 1)
    assert len(sizes) < num_waiting + 1
    assert sum(sizes) == num_waiting + 1


def test_half_characters_and_other_letters_go_in_and_out(features: str, client: httpx.Client) -> None:
    region = TRIANGLE | {"class_name": "\ud83d naïve 三角形 \U0001f53a"}
    body = json.dumps({"regions": [region]}).encode()
    answer = client.post(f"{features}/captions", content=body, headers={"content-type": "application/json"})
    assert answer_of(answer)["captions"][0]["detection"]["class_name"] == region["class_name"]
