"""What clients of a service ask in turn, with the library's captions for each question."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from benchmarks.timing.http_clients import Step, json_step
from runtime import Box, Captioner, Point, Region
from runtime.regions.serialization import to_dict

_SAMPLE = Path(__file__).parents[2] / "export" / "demo" / "sample" / "scene.jpg"
_IMAGES, _BOXES, _UPLOAD_EVERY = 8, 4, 4


def pages(captioner: Captioner, hovers: int = 20) -> list[list[Step]]:
    """Return a session for each image: one encoding, captions under a moving cursor, some boxes, a few mistakes."""
    rng = np.random.default_rng(0)
    sessions = [_page(captioner, image, hovers, rng) for image in scenes()]
    uploaded = uploads(captioner)
    return [steps + uploaded[number] * (number % _UPLOAD_EVERY == 0) for number, steps in enumerate(sessions)]


def _page(captioner: Captioner, image: bytes, hovers: int, rng: np.random.Generator) -> list[Step]:
    features = captioner.encode(image)
    width, height = features.image_whs[0]

    def asked(call: str, regions: list[Region], n_best: int = 0) -> Step:
        expected = captioner.describe(features, regions, n_best=n_best)
        values = {"regions": [to_dict(region) for region in regions], "options": {"n_best": n_best}}
        return json_step(call, "/v1/features/{id}/captions", values, [caption.text for caption in expected])

    points = [Point(*map(int, rng.integers((0, 0), (width, height)))) for _ in range(hovers)]
    corners = rng.integers(0, (width // 2, height // 2), (_BOXES, 2)).tolist()
    boxes: list[Region] = [Box(x, y, x + width // 3, y + height // 3) for x, y in corners]
    return [
        Step("encode", "POST", "/v1/features", image, "image/jpeg", 201),
        Step("attention", "GET", "/v1/features/{id}/attention"),
        *(asked("hover", [point]) for point in points[: hovers // 2]),
        asked("boxes", boxes),
        Step("wrong", "POST", "/v1/features/{id}/captions", b'{"regions": "all"}', "application/json", 400),
        *(asked("hover", [point]) for point in points[hovers // 2 :]),
        asked("boxes, nearest", boxes, n_best=3),
        Step("look-up", "GET", "/v1/features/{id}"),
        Step("delete", "DELETE", "/v1/features/{id}", status=204),
        Step("wrong", "GET", "/v1/features/{id}", status=404),
    ]


def uploads(captioner: Captioner) -> list[list[Step]]:
    """Return a session for each image: the whole of it is sent with two regions."""
    regions: list[Region] = [Box(50, 50, 300, 300), Point(200, 200)]
    asked = [to_dict(region) for region in regions]
    sessions = []
    for image in scenes():
        texts = [caption.text for caption in captioner.caption(image, regions)]
        sessions.append([json_step("upload", "/v1/captions", {"image": _base64(image), "regions": asked}, texts)])
    return sessions


MIXES = {"pages": pages, "uploads": uploads}


def scenes() -> Iterator[bytes]:
    """Yield JPEGs of 640 x 480: the sample, turned and mirrored."""
    with Image.open(_SAMPLE) as sample:
        scene = sample.convert("RGB")
    for number in range(_IMAGES):
        turned = scene.rotate(90 * (number % 4))
        file = io.BytesIO()
        (ImageOps.mirror(turned) if number >= 4 else turned).resize((640, 480)).save(file, "JPEG", quality=90)
        yield file.getvalue()


def _base64(image: bytes) -> str:
    return base64.b64encode(image).decode("ascii")
