"""What the model does with a batch, without a server: one pass for all, and nobody's error is another's."""

from __future__ import annotations

import io
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from runtime import BundleError, Caption, Captioner, OptionError
from runtime.features import FeatureMap, RegionVectors
from runtime.output.as_json import caption_as_json
from runtime.serving.limits import InputLimits
from runtime.serving.triton import TritonCaptioner
from runtime.serving.triton_requests import ImageRequest, Refusal
from tests.conftest import SAMPLE
from tests.triton.test_answers import BAD, check_same

SCENE = (SAMPLE / "scene.jpg").read_bytes()
TRIANGLE = json.dumps([[276, 174, 507, 399]]).encode()


def picture(color: str, side: int = 40) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (side, side), color).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def log() -> list[str]:
    return []


@pytest.fixture
def model(demo: Captioner, log: list[str]) -> TritonCaptioner:
    return TritonCaptioner(demo, InputLimits(), log.append)


class Watched:
    """Counts the images of each pass through the backbone, and the regions of each batch of captions."""

    def __init__(self, demo: Captioner, patch: pytest.MonkeyPatch) -> None:
        self.images, self.regions = list[int](), list[int]()
        encode, describe = demo.encode, demo.pipeline.describe_vectors

        def count_images(images: Any, **keywords: Any) -> FeatureMap:
            self.images.append(len(images) if isinstance(images, list) else 1)
            return encode(images, **keywords)

        def count_regions(vectors: RegionVectors, *rest: Any) -> Any:
            self.regions.append(len(vectors))
            return describe(vectors, *rest)

        patch.setattr(demo, "encode", count_images)
        patch.setattr(demo.pipeline, "describe_vectors", count_regions)


@pytest.fixture
def watched(demo: Captioner, monkeypatch: pytest.MonkeyPatch) -> Watched:
    return Watched(demo, monkeypatch)


def captions_of(answer: list[bytes] | Refusal) -> Any:
    assert not isinstance(answer, Refusal), answer.line
    (text,) = answer
    return json.loads(text)


def test_images_of_all_requests_are_one_pass_and_regions_of_equal_options_one_batch(
    model: TritonCaptioner, demo: Captioner, watched: Watched
) -> None:
    colors = ["red", "green", "blue", "white", "black", "yellow", "orange", "purple"]
    images = [picture(color, 40 + 8 * number) for number, color in enumerate(colors)]
    options = [b"", b"{}", b'{"beams": 2}', b'{"clean": "orthogonal"}'] * 2
    asked = [[ImageRequest(image, b"", option)] for image, option in zip(images, options, strict=True)]
    answers = model.answer(asked)
    assert (watched.images, sorted(watched.regions)) == ([8], [2, 2, 4])
    for image, option, answer in zip(images, options, answers, strict=True):
        keywords = json.loads(option or b"{}")
        expected = demo.caption(image, [{"kind": "whole_image"}], **keywords)
        check_same(captions_of(answer), [caption_as_json(caption) for caption in expected])


@pytest.mark.parametrize(("image", "regions", "options", "error"), BAD)
def test_a_bad_request_harms_none_of_those_beside_it(
    model: TritonCaptioner, watched: Watched, image: bytes, regions: bytes, options: bytes, error: str
) -> None:
    good = [ImageRequest(SCENE, TRIANGLE)]
    first, bad, last = model.answer([good, [ImageRequest(image, regions, options)], good])
    assert isinstance(bad, Refusal)
    assert bad.code == "INVALID_ARG"
    assert bad.line.startswith(error)
    assert captions_of(first) == captions_of(last)
    assert captions_of(first)[0]["text"] == "a large striped red triangle"
    assert watched.regions == [2]


def test_what_the_bundle_was_built_without_is_said_to_those_who_ask_for_it(
    model: TritonCaptioner, demo: Captioner, monkeypatch: pytest.MonkeyPatch
) -> None:
    describe = demo.pipeline.describe_vectors

    def without_beams(vectors: RegionVectors, options: Any, *rest: Any) -> Any:
        if options.beams > 1:
            raise BundleError("demo: it was built without a decoder for beam search")
        return describe(vectors, options, *rest)

    monkeypatch.setattr(demo.pipeline, "describe_vectors", without_beams)
    asked = [[ImageRequest(SCENE, b"", option)] for option in (b"", b'{"beams": 2}', b'{"beams": 2}')]
    good, *refused = model.answer(asked)
    assert captions_of(good)
    assert refused == [Refusal("UNSUPPORTED", "demo: it was built without a decoder for beam search")] * 2


def test_an_image_that_the_backbone_fails_on_is_its_own_error_and_in_the_log(
    model: TritonCaptioner, demo: Captioner, log: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    encode, secret = demo.encode, "a word of nobody else's"

    def fail_on_large(images: Any) -> FeatureMap:
        if any(image.size == (50, 50) for image in (images if isinstance(images, list) else [images])):
            raise MemoryError(secret)
        return encode(images)

    monkeypatch.setattr(demo, "encode", fail_on_large)
    good, bad, last = model.answer([[ImageRequest(picture("red", side))] for side in (40, 50, 60)])
    assert captions_of(good)
    assert captions_of(last)
    assert bad == Refusal("INTERNAL", "MemoryError, an error of the model itself: see the server's log")
    assert len(log) == 1
    assert secret in log[0]
    assert "Traceback" in log[0]


def test_what_json_cannot_hold_is_an_error_of_its_request(
    model: TritonCaptioner, demo: Captioner, log: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    describe = demo.pipeline.describe_vectors

    def infinite(vectors: RegionVectors, options: Any, *rest: Any) -> list[Caption]:
        captions = describe(vectors, options, *rest)
        return [replace(captions[0], score=math.inf), *captions[1:]]

    monkeypatch.setattr(demo.pipeline, "describe_vectors", infinite)
    bad, good = model.answer([[ImageRequest(SCENE, TRIANGLE)]] * 2)
    assert bad == Refusal("INTERNAL", "ValueError, an error of the model itself: see the server's log")
    assert captions_of(good)[0]["text"] == "a large striped red triangle"
    assert len(log) == 1


def test_the_rows_of_a_request_keep_their_own_errors(model: TritonCaptioner) -> None:
    (answer, alone) = model.answer([[ImageRequest(SCENE, TRIANGLE), ImageRequest(b"hello")], [ImageRequest(b"hello")]])
    assert not isinstance(answer, Refusal)
    good, bad = map(json.loads, answer)
    assert good[0]["text"] == "a large striped red triangle"
    assert isinstance(alone, Refusal)
    assert bad == {"error": alone.line}


def test_nothing_is_asked_of_a_cancelled_request(model: TritonCaptioner, watched: Watched) -> None:
    assert model.answer([[], []]) == [[], []]
    assert watched.regions == []


def test_images_are_decoded_as_many_at_a_time_as_one_may_have_pixels(demo: Captioner, watched: Watched) -> None:
    model = TritonCaptioner(demo, InputLimits(pixels=2 * 40**2), print)
    answers = model.answer([[ImageRequest(picture("red"))]] * 5 + [[ImageRequest(picture("red", 57))]])
    assert watched.images == [2, 2, 1]
    assert watched.regions == [5]
    assert [isinstance(answer, Refusal) for answer in answers] == [False] * 5 + [True]
    assert answers[-1] == Refusal("INVALID_ARG", "image: expected at most 3200 pixels, got 57 x 57")


@pytest.mark.parametrize(
    ("regions", "options", "error"),
    [
        (b"[" + b"[0,0,9,9]," * 4 + b"[0,0,9,9]]", b"", "regions: expected at most 4 regions, got 5"),
        (b"[[0,0,9,9],[0,0,9,9]]", b'{"beams": 3}', "regions: expected at most 4 regions times beams, got 6"),
        (
            b'[{"kind":"crop","xyxy":[0,0,9,9]},{"kind":"crop","xyxy":[0,0,9,9]}]',
            b"",
            "regions: expected at most 1 crop",
        ),
        (b'[{"size":[99999,99999],"counts":[1]}]', b"", "regions: expected at most 40000 pixels of masks"),
        (b" " * 20_000 + b"[]", b"", "request: expected at most 20000 bytes for an image, got "),
    ],
)
def test_more_than_the_limits_is_refused(demo: Captioner, regions: bytes, options: bytes, error: str) -> None:
    model = TritonCaptioner(demo, InputLimits(bytes=20_000, pixels=10_000, regions=4, crops=1), print)
    (answer,) = model.answer([[ImageRequest(picture("red"), regions, options)]])
    assert isinstance(answer, Refusal)
    assert answer.line.startswith(error)


Given = dict[str, str]


@pytest.fixture
def given(demo_bundle: Path, tmp_path: Path) -> Given:
    """What Triton gives `initialize`, but for the parameters."""
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / "bundle").symlink_to(demo_bundle)
    return {
        "model_repository": str(tmp_path),
        "model_version": "1",
        "model_instance_kind": "CPU",
        "model_instance_device_id": "0",
    }


def config_of(count: int = 1, /, **parameters: str) -> str:
    strings = {name: {"string_value": value} for name, value in parameters.items()}
    return json.dumps({"instance_group": [{"count": count}], "parameters": strings})


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch, demo: Captioner) -> list[Any]:
    """What captioners are loaded with."""
    calls: list[Any] = []

    def load(*arguments: Any, **keywords: Any) -> Captioner:
        calls.append((arguments, keywords))
        return demo

    monkeypatch.setattr(Captioner, "load", load)
    return calls


def test_parameters_and_a_share_of_the_cores_go_to_the_captioner(
    given: Given, loaded: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runtime.system.machine.usable_cores", lambda: 8)
    for config in (
        config_of(),
        config_of(2, backend="openvino", precision="bf16", fit="crop", bundle="/srv/demo", EXECUTION_ENV_PATH="x"),
        config_of(2, threads="3"),
    ):
        TritonCaptioner.open(given | {"model_config": config}, print)
    plain, chosen, threads = loaded
    folder = Path(given["model_repository"], "1", "bundle")
    assert plain == ((folder, "auto", "stretch"), {"precision": "fp32", "threads": None})
    assert chosen == ((Path("/srv/demo"), "openvino", "crop"), {"precision": "bf16", "threads": 4})
    assert threads[1]["threads"] == 3


@pytest.mark.usefixtures("loaded")
def test_limits_are_parameters(given: Given) -> None:
    model = TritonCaptioner.open(given | {"model_config": config_of(max_pixels="100")}, print)
    (answer,) = model.answer([[ImageRequest(picture("red"))]])
    assert answer == Refusal("INVALID_ARG", "image: expected at most 100 pixels, got 40 x 40")


@pytest.mark.usefixtures("loaded")
def test_an_instance_on_a_gpu_works_on_its_own(given: Given, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen: list[int] = []
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    gpu = {"model_instance_kind": "GPU", "model_instance_device_id": "2", "model_config": config_of(2)}
    TritonCaptioner.open(given | gpu, print)
    assert chosen == [2]


@pytest.mark.parametrize(
    ("parameters", "error"),
    [
        ({"thread": "2"}, r"config.pbtxt: parameters: expected some of bundle, .*max_crops, got 'thread'"),
        ({"threads": "two"}, "config.pbtxt: parameter threads: expected a whole number, got 'two'"),
        ({"max_pixels": "0"}, "pixels: expected a whole number from 1 on, got 0"),
        ({"fit": "squeeze"}, "fit 'squeeze': expected"),
    ],
)
def test_a_parameter_that_cannot_be_is_named(given: Given, parameters: dict[str, str], error: str) -> None:
    with pytest.raises(OptionError, match=error):
        TritonCaptioner.open(given | {"model_config": config_of(1, **parameters)}, print)
