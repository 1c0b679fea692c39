"""Captions through a real Triton Inference Server are those of the library, whoever else asks at the time."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

import httpx
import pytest
from PIL import Image
from tritonclient.utils import InferenceServerException

from runtime import Captioner
from runtime.output.as_json import caption_as_json
from tests.conftest import SAMPLE
from tests.triton.client import PROTOCOLS, ask, open_client
from tests.triton.server import TritonServer

SCENE = (SAMPLE / "scene.jpg").read_bytes()
TRIANGLE = {"kind": "box", "xyxy": [276, 174, 507, 399]}
POINTS = [[90, 420], [321, 420], [200, 648]]
OF_EACH_KIND = [
    TRIANGLE,
    {"kind": "crop", "xyxy": [276, 174, 507, 399]},
    {"kind": "box_set", "boxes": [[276, 174, 507, 399], [90, 420, 321, 648]]},
    {"kind": "point", "x": 200, "y": 500},
    {"kind": "polygon", "points": POINTS},
    {"kind": "polygon_set", "polygons": [POINTS, [[276, 174], [507, 174], [400, 399]]]},
    {"kind": "trace", "points": POINTS},
    {"kind": "mask", "size": [672, 672], "counts": [672 * 300, 672 * 100, 672 * 272]},
    {"kind": "patch", "row": 7, "column": 8},
    {"kind": "register", "index": 0},
    {"kind": "attention_head", "head": 1},
    {"kind": "whole_image"},
    [276, 174, 507, 399],
    {"bbox": [276, 174, 231, 225], "id": 7, "class_name": "dr\u00fcie\u00e7k"},
    {"kind": "point", "x": 9000, "y": 10},
    {"kind": "nothing"},
]
BAD = [
    (b"", b"", b"", "IMAGE: expected an encoded image, got nothing"),
    (b"hello", b"", b"", "image: not an image that Pillow can read"),
    (SCENE[:-9000], b"", b"", "image bytes: cannot be read as an image"),
    (SCENE, b"{", b"", "REGIONS: expected JSON: "),
    (SCENE, b"[" * 100_000, b"", "REGIONS: expected JSON, got some that is nested too deeply"),
    (SCENE, b'"all"', b"", "regions: expected a list of regions, got str"),
    (SCENE, b"\xff\xfe\xfd", b"", "REGIONS: expected JSON: "),
    (SCENE, b"", b"[]", "OPTIONS: expected a JSON object, got list"),
    (SCENE, b"", b'{"beams": 0}', "beams: expected a whole number from 1 to 256, got 0"),
    (SCENE, b"", b'{"colour": 1}', "options: expected some of "),
    (SCENE, b"", b'{"prompt_padding": "reference"}', 'prompt_padding="reference": captions would depend'),
    (SCENE, json.dumps([TRIANGLE] * 1025).encode(), b"", "regions: expected at most 1024 regions, got 1025"),
]


def expected_of(demo: Captioner, image: Any, regions: Any, **options: Any) -> list[dict[str, object]]:
    return [caption_as_json(caption) for caption in demo.caption(image, regions, on_bad="skip", **options)]


def check_same(got: Any, expected: Any) -> None:
    """Words, ids and regions are the same; numbers but for what another batch rounds.

    For three regions and more AMX projects in products of two bfloat16, to 2**-16 of a vector.
    """
    if isinstance(expected, dict):
        assert set(got) == set(expected)
        for name in expected:
            check_same(got[name], expected[name])
    elif isinstance(expected, (list, tuple)):
        for one, other in zip(got, expected, strict=True):
            check_same(one, other)
    elif isinstance(expected, float):
        assert got == pytest.approx(expected, abs=5e-5)
    else:
        assert got == expected


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_an_image_alone_is_described_as_a_whole(server: TritonServer, demo: Captioner, protocol: str) -> None:
    check_same(ask(protocol, server, [SCENE]), [expected_of(demo, SCENE, [{"kind": "whole_image"}])])


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_regions_of_every_form_are_those_of_the_library(server: TritonServer, demo: Captioner, protocol: str) -> None:
    (got,) = ask(protocol, server, [SCENE], [json.dumps(OF_EACH_KIND).encode()])
    check_same(got, expected_of(demo, SCENE, OF_EACH_KIND))
    assert [bool(caption.get("error")) for caption in got[-3:]] == [False, True, True]


@pytest.mark.parametrize(
    "options",
    [
        {"n_best": 2},
        {"mode": "nearest", "n_best": 1},
        {"beams": 3, "length_penalty": 0.5},
        {"top_p": 0.9, "seed": 7},
        {"clean": "orthogonal", "alpha": 0.1},
        {"reencode": "mean", "score": "reference"},
    ],
)
def test_options_are_those_of_the_library(server: TritonServer, demo: Captioner, options: dict[str, Any]) -> None:
    regions = [TRIANGLE, {"kind": "point", "x": 200, "y": 500}]
    (got,) = ask("http", server, [SCENE], [json.dumps(regions).encode()], [json.dumps(options).encode()])
    check_same(got, expected_of(demo, SCENE, regions, **options))


def test_pixels_are_sent_as_they_are_in_a_format_without_compression(
    server: TritonServer, demo: Captioner, sample_image: Image.Image
) -> None:
    """As docs/triton.md says for cameras: a header of PPM before them."""
    pixels = b"P6 %d %d 255\n" % sample_image.size + sample_image.tobytes()
    check_same(ask("grpc", server, [pixels]), [expected_of(demo, sample_image, [{"kind": "whole_image"}])])


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_images_of_one_request_have_regions_options_and_errors_of_their_own(
    server: TritonServer, demo: Captioner, protocol: str
) -> None:
    images = [SCENE, b"hello", SCENE, SCENE]
    regions = [json.dumps([TRIANGLE]).encode(), b"", b"[]", b""]
    options = [b'{"n_best": 1}', b"", b"", b'{"beams": 2}']
    first, bad, none, last = ask(protocol, server, images, regions, options)
    check_same(first, expected_of(demo, SCENE, [TRIANGLE], n_best=1))
    assert bad["error"].startswith("image: not an image that Pillow can read")
    assert none == []
    check_same(last, expected_of(demo, SCENE, [{"kind": "whole_image"}], beams=2))


@pytest.mark.parametrize(("image", "regions", "options", "error"), BAD)
def test_what_cannot_be_is_an_error_of_its_request(
    server: TritonServer, image: bytes, regions: bytes, options: bytes, error: str
) -> None:
    for protocol, status in (("http", "400"), ("grpc", "StatusCode.INVALID_ARGUMENT")):
        with pytest.raises(InferenceServerException) as raised:
            ask(protocol, server, [image], [regions], [options])
        assert raised.value.message().startswith(error)
        assert "\n" not in raised.value.message()
        assert raised.value.status() == status


def test_a_request_without_an_image_is_told_so(server: TritonServer) -> None:
    """The server counts inputs and does not look which of them are there."""
    body = {"inputs": [{"name": "REGIONS", "datatype": "BYTES", "shape": [1, 1], "data": ["[]"]}]}
    answer = httpx.post(f"http://{server.http}/v2/models/patchcaption/infer", json=body)
    assert (answer.status_code, answer.json()) == (400, {"error": "IMAGE: expected an encoded image, got nothing"})


def test_images_of_clients_are_described_together_and_a_bad_one_harms_none(
    server: TritonServer, demo: Captioner
) -> None:
    clients, rounds, barrier = 8, 5, Barrier(8)
    boxes = [[276, 174, 507, 399 - 8 * client] for client in range(clients)]
    bad = {2: (b"hello", b""), 5: (SCENE, b"{")}

    def count() -> tuple[int, int]:
        with open_client("http", server) as client:
            (model,) = client.get_inference_statistics("patchcaption")["model_stats"]
        return model.get("inference_count", 0), model.get("execution_count", 0)

    def ask_as(client: int) -> list[Any]:
        barrier.wait(30)
        answers = []
        for _ in range(rounds):
            image, regions = bad.get(client, (SCENE, json.dumps([boxes[client]]).encode()))
            try:
                answers += ask(PROTOCOLS[client % 2], server, [image], [regions])
            except InferenceServerException as error:
                answers.append(error.message())
        return answers

    before = count()
    with ThreadPoolExecutor(clients) as threads:
        answers = list(threads.map(ask_as, range(clients)))
    described, passes = (after - earlier for after, earlier in zip(count(), before, strict=True))
    for client, of_client in enumerate(answers):
        for answer in of_client:
            if client in bad:
                assert answer.startswith(("image: not an image", "REGIONS: expected JSON"))
            else:
                check_same(answer, expected_of(demo, SCENE, [boxes[client]]))
    assert passes < described


def test_the_server_says_what_the_model_takes(server: TritonServer) -> None:
    with open_client("http", server) as client:
        assert client.is_server_ready()
        assert client.is_model_ready("patchcaption")
        metadata = client.get_model_metadata("patchcaption")
        config = client.get_model_config("patchcaption")
    assert metadata["inputs"] == [
        {"name": name, "datatype": "BYTES", "shape": [-1, 1]} for name in ("IMAGE", "REGIONS", "OPTIONS")
    ]
    assert metadata["outputs"] == [{"name": "CAPTIONS", "datatype": "BYTES", "shape": [-1, 1]}]
    assert [entry["optional"] for entry in config["input"]] == [False, True, True]
    assert config["max_batch_size"] == 8
    assert config["dynamic_batching"]["default_queue_policy"]["max_queue_size"] == 128
