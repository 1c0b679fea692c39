"""The programs around HTTP: an app with the library in it, and a client of `patchcaption serve`."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from runtime import Captioner
from runtime.serving.http.settings import Access
from tests.conftest import ROOT, SAMPLE
from tests.serving.http.served import served

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


def client(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the client, which needs nothing that is installed: not even what is in site-packages."""
    command = [sys.executable, "-I", "-S", str(ROOT / "examples" / "http_client.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **environment})


def test_the_client_asks_for_boxes_and_for_the_whole_image(demo: Captioner) -> None:
    scene = str(SAMPLE / "scene.jpg")
    with served(demo) as url:
        boxes = client(url, scene, "276,174,507,399", "90,420,321,648", "9000,0,9001,1")
        whole = client(url, scene)
    triangle, square, outside = boxes.stdout.splitlines()
    assert (triangle, square) == ("a large striped red triangle", "a large solid green square")
    assert "outside the image of 672 x 672 pixels" in outside
    assert whole.stdout == "five shapes on a checked white background\n"


def test_the_client_says_why_it_has_no_answer(demo: Captioner) -> None:
    scene, token = str(SAMPLE / "scene.jpg"), "0123456789abcdef"
    with served(demo, Access(token=token)) as url:
        assert client(url, scene).stderr == '401: {"error":"expected the header Authorization: Bearer TOKEN"}\n'
        assert client(url, scene, PATCHCAPTION_TOKEN=token).returncode == 0
        assert client(url, __file__, PATCHCAPTION_TOKEN=token).stderr.startswith('400: {"error":"image: not an image')
    assert client(url, scene).stderr.startswith(f"{url}: ")
