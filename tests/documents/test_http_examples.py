"""The programs around HTTP: an app with the library in it, and a client of `patchcaption serve`."""

from __future__ import annotations

import runpy
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT, SAMPLE

pytest.importorskip("fastapi")
from fastapi.testclient import TestClient

TRIANGLE, OUTSIDE = [276, 174, 507, 399], [9000, 0, 9001, 1]
SCENE = (SAMPLE / "scene.jpg").read_bytes()


@pytest.fixture(scope="module")
def app(demo_bundle: Path) -> Iterator[TestClient]:
    create_app = runpy.run_path(str(ROOT / "examples" / "fastapi_app.py"))["create_app"]
    with TestClient(create_app(str(demo_bundle))) as client:
        yield client


def test_the_app_captions_an_image_with_its_boxes(app: TestClient) -> None:
    answer = app.post("/captions", files={"image": SCENE}, data={"boxes": str([TRIANGLE, OUTSIDE, [5, 5, 1, 1]])})
    assert answer.status_code == 200
    triangle, outside, inverted = answer.json()
    assert (triangle["text"], triangle["error"]) == ("a large striped red triangle", None)
    assert "outside the image of 672 x 672 pixels" in outside["error"]
    assert "expected x1 < x2" in inverted["error"]


def test_the_app_encodes_once_and_answers_again(app: TestClient) -> None:
    kept = app.post("/images", files={"image": SCENE})
    assert kept.status_code == 201
    for box, text in ((TRIANGLE, "a large striped red triangle"), ([90, 420, 321, 648], "a large solid green square")):
        answer = app.post(f"/images/{kept.json()['id']}/captions", json=[box])
        assert [row["text"] for row in answer.json()] == [text]


def test_the_app_forgets_the_oldest_image(demo_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    create_app = runpy.run_path(str(ROOT / "examples" / "fastapi_app.py"))["create_app"]
    monkeypatch.setitem(create_app.__globals__, "KEPT", 1)
    with TestClient(create_app(str(demo_bundle))) as client:
        first, second = (client.post("/images", files={"image": SCENE}).json()["id"] for _ in range(2))
        assert client.post(f"/images/{second}/captions", json=[TRIANGLE]).status_code == 200
        gone = client.post(f"/images/{first}/captions", json=[TRIANGLE])
    assert (gone.status_code, gone.json()) == (404, {"detail": f"no image {first}: send it again"})


@pytest.mark.parametrize(
    ("image", "boxes", "status", "reason"),
    [
        (b"no image", "[]", 400, "image bytes: not an image that Pillow can read"),
        (SCENE, "[[1, 2, 3]]", 422, "body.boxes.0.3: Field required"),
        (SCENE, "[[NaN, 2, 3]]", 422, "body.boxes.0.3: Field required"),
        (SCENE, "nothing", 422, "body.boxes: Invalid JSON"),
    ],
)
def test_the_app_says_what_it_cannot_take(app: TestClient, image: bytes, boxes: str, status: int, reason: str) -> None:
    answer = app.post("/captions", files={"image": image}, data={"boxes": boxes})
    assert answer.status_code == status
    assert answer.json()["detail"].startswith(reason)


def test_the_app_starts_as_its_first_lines_say() -> None:
    """`uvicorn examples.fastapi_app:app` in the clone."""
    from uvicorn.importer import import_from_string

    assert import_from_string("examples.fastapi_app:app").title == "Captions of boxes"
