"""The whole runtime on the demo bundle: exact captions, and properties of any bundle."""

from __future__ import annotations

import gc
import re
import subprocess
import sys
import weakref
from collections.abc import Callable
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from export.demo import scenes
from runtime import (
    BackendError,
    Box,
    BoxSet,
    Captioner,
    ImageError,
    Mask,
    Patch,
    PatchcaptionError,
    Point,
    Region,
    RegionError,
    Trace,
    WholeImage,
)
from runtime.backends import Backend
from runtime.backends.onnxruntime_cpu import OrtBackend
from runtime.backends.onnxruntime_gpu import CPU, OrtGpuBackend
from runtime.bundle import Bundle
from runtime.image import ImageSource
from runtime.memory import MemoryBank
from runtime.options import DescribeKeywords
from tests.conftest import ROOT
from tests.doubles import RecordingBackend, captioner_of, with_manifest

SCENE = scenes.draw_scene(scenes.HELD_OUT_SEED + 1)
FIRST, SECOND = SCENE.objects[:2]
REGIONS: list[Region] = [
    FIRST.box,
    SECOND.mask,
    scenes.pair_region(FIRST, SECOND),
    Trace.normalized([(0.5, 0.5)]),
    WholeImage(),
]


@pytest.fixture(scope="module")
def bundle(demo_bundle: Path) -> Bundle:
    return Bundle(demo_bundle, verify=False)


def test_the_demo_names_what_it_sees(demo: Captioner) -> None:
    captions = demo.caption(SCENE.image, [FIRST.box, SECOND.mask, scenes.pair_region(FIRST, SECOND)])
    assert [caption.text for caption in captions] == [
        FIRST.look.caption,
        SECOND.look.caption,
        scenes.pair_caption(FIRST.look, SECOND.look),
    ]


def test_captions_are_aligned_with_the_regions_given(demo: Captioner) -> None:
    captions = demo.caption(SCENE.image, REGIONS)
    assert [caption.region for caption in captions] == REGIONS
    for caption in captions:
        assert 0 < caption.score <= 1
        assert caption.ids[-1] == demo.manifest.decoder.eos_token_id
        assert len(caption.ids) <= demo.manifest.decoder.max_new_tokens


def test_the_backbone_runs_once_for_any_number_of_descriptions(bundle: Bundle) -> None:
    backend = RecordingBackend()
    with captioner_of(bundle, backend) as captioner:
        features = captioner.encode(SCENE.image)
        together = captioner.describe(features, REGIONS)
        alone = [captioner.describe(features, [region])[0] for region in REGIONS]
    assert [caption.ids for caption in alone] == [caption.ids for caption in together]
    assert len(backend.engines["backbone"].runs) == 1


def test_several_images_at_once_are_the_same_as_one_by_one(demo: Captioner) -> None:
    drawn = [scenes.draw_scene(scenes.HELD_OUT_SEED + number) for number in range(3)]
    images: list[ImageSource] = [drawn[0].image, Image.fromarray(drawn[1].image).resize((300, 200)), drawn[2].image]
    regions: list[list[Region]] = [[drawn[0].objects[0].box, WholeImage()], [], [one.mask for one in drawn[2].objects]]
    together = demo.caption(images, regions)
    apart = [demo.caption(image, own) for image, own in zip(images, regions, strict=True)]
    assert [len(captions) for captions in together] == [len(captions) for captions in apart]
    for one, other in zip(chain(*together), chain(*apart), strict=True):
        assert (one.ids, one.text) == (other.ids, other.text)
        assert one.score == pytest.approx(other.score, rel=1e-4)  # float32 sums in another order


def test_long_lists_of_images_are_encoded_in_parts(demo: Captioner, bundle: Bundle) -> None:
    images = [scenes.draw_scene(seed).image for seed in range(5)]
    whole = demo.encode(images)
    two_at_once = demo.manifest.backbone.model_copy(update={"max_batch_size": 2})
    backend = RecordingBackend()
    with captioner_of(with_manifest(bundle, backbone=two_at_once), backend) as captioner:
        parts = captioner.encode(images)
    assert [run["pixel_values"][0] for run in backend.engines["backbone"].runs] == [2, 2, 1]
    torch.testing.assert_close(parts.tokens, whole.tokens)
    torch.testing.assert_close(parts.cls_attention_logits, whole.cls_attention_logits)
    assert parts.views == whole.views


def test_features_can_be_taken_image_by_image(demo: Captioner) -> None:
    features = demo.encode([SCENE.image, SCENE.image[:, ::-1]])
    assert len(features) == 2
    one = demo.describe(features[1], [WholeImage()])
    assert [caption.ids for caption in one] == [
        caption.ids for caption in demo.describe(features, [[], [WholeImage()]])[1]
    ]
    with pytest.raises(IndexError):
        features[2]


def test_nothing_asked_is_nothing_answered(demo: Captioner) -> None:
    features = demo.encode(SCENE.image)
    width = demo.manifest.backbone.output_dim
    assert demo.describe(features, []) == []
    assert demo.describe(features, [[]]) == [[]]  # type: ignore[comparison-overlap]
    assert demo.caption([], []) == []
    assert demo.vectors(features, []).shape == (0, width)
    assert demo.project(torch.empty(0, width)).shape == (0, width)
    assert demo.decode(torch.empty(0, width)) == []


def test_vectors_are_weighted_sums_of_tokens(demo: Captioner) -> None:
    features = demo.encode([SCENE.image, SCENE.image[::-1]])
    regions: list[list[Region]] = [[WholeImage(pool="mean"), WholeImage(pool="cls")], [Point(0, 0)]]
    vectors = demo.vectors(features, regions)
    expected = [features.patches[0].mean(0), features.cls[0], features.patches[1, 0]]
    torch.testing.assert_close(vectors, torch.stack(expected))


def test_projected_vectors_are_unit_sums_of_the_bank(demo: Captioner) -> None:
    vectors = demo.vectors(demo.encode(SCENE.image), REGIONS)
    before = vectors.clone()
    projected = demo.project(vectors)
    torch.testing.assert_close(vectors, before, rtol=0, atol=0)  # the caller's vectors stay as they were
    torch.testing.assert_close(projected.norm(dim=1), torch.ones(len(REGIONS)))
    bank = demo.pipeline.projector
    assert isinstance(bank, MemoryBank)
    cosines = torch.cosine_similarity(vectors[:, None].double(), bank.rows.stored.double(), dim=2)
    sums = torch.softmax(cosines / bank.config.temperature, dim=1) @ bank.rows.stored.double()
    torch.testing.assert_close(projected.double(), sums / sums.norm(dim=1, keepdim=True), rtol=1e-4, atol=1e-5)
    assert bank.captions[int(cosines[0].argmax())] == FIRST.look.caption


def test_many_regions_are_projected_in_parts(demo: Captioner, monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = demo.vectors(demo.encode(SCENE.image), REGIONS)
    whole = demo.project(vectors)
    monkeypatch.setattr("runtime.memory.bank._REGIONS_AT_ONCE", 2)
    torch.testing.assert_close(demo.project(vectors), whole)


def test_every_patch_of_an_image_is_captioned_in_one_call_with_progress(demo: Captioner) -> None:
    features = demo.encode(SCENE.image)
    reported: list[tuple[int, int]] = []
    patches = [Patch(row, column) for row in range(16) for column in range(16)]
    captions = demo.describe(features, patches, progress=lambda done, total: reported.append((done, total)))
    assert reported[-1] == (256, 256)
    chosen = [0, 100, 255]
    alone = [demo.describe(features, [patches[index]])[0].text for index in chosen]
    assert [captions[index].text for index in chosen] == alone


def test_fit_crop_sees_the_centre_square_at_its_own_aspect_ratio(demo_bundle: Path) -> None:
    wide = np.pad(SCENE.image, ((0, 0), (100, 100), (0, 0)), mode="edge")  # the scene with 100 pixels either side
    shifted = Box(FIRST.box.x1 + 100, FIRST.box.y1, FIRST.box.x2 + 100, FIRST.box.y2)
    with Captioner.load(demo_bundle, fit="crop") as cropping:
        assert cropping.caption(wide, [shifted])[0].text == FIRST.look.caption
        with pytest.raises(RegionError, match="covers nothing of what the model sees"):
            cropping.caption(wide, [Box(0, 0, 50, 50)])


@pytest.mark.parametrize(
    ("regions", "message"),
    [
        ([[WholeImage()]], "expected 2 lists, one for each image, got 1"),
        ([WholeImage(), WholeImage()], "2 images were encoded; give a list of regions for each"),
        ([], "2 images were encoded"),
        ("boxes", "expected a list of regions, got str"),
        (WholeImage(), "2 images were encoded; give a list of regions for each"),
        ([[WholeImage()], ["box"]], "region 0: expected a Box, Mask, Trace .* got str"),
        ([[WholeImage()], [Box(500, 0, 600, 10)]], "image 1: region 0: Box.* lies outside the image of 224 x 224"),
        ([[Mask(np.ones((2, 4), bool))], []], "image 0: region 0: Mask.*expected the image's size, 224 x 224"),
    ],
)
def test_regions_that_do_not_match_are_refused(demo: Captioner, regions: object, message: str) -> None:
    with pytest.raises(RegionError, match=message):
        demo.caption([SCENE.image, SCENE.image], regions)  # type: ignore[call-overload]


def test_a_bad_image_in_a_list_is_named_by_its_number(demo: Captioner) -> None:
    with pytest.raises(ImageError, match="image 1: .*uint8"):
        demo.encode([SCENE.image, SCENE.image.astype(float)])


def zeros_but(*numbers: tuple[int, float]) -> torch.Tensor:
    """Return vectors (4, 192) of zeros, but for these numbers in these rows."""
    vectors = torch.zeros(4, 192, dtype=torch.float64)
    for row, number in numbers:
        vectors[row, 7] = number
    return vectors


@pytest.mark.parametrize(
    ("vectors", "message"),
    [
        (torch.zeros(3, 10), r"expected real numbers of shape \(R, 192\), got float32 \(3, 10\)"),
        (torch.zeros(192), r"expected real numbers of shape \(R, 192\), got float32 \(192,\)"),
        (torch.zeros(3, 192, dtype=torch.complex64), r"got complex64 \(3, 192\)"),
        (torch.zeros(3, 192).to_sparse(), r"expected real numbers of shape \(R, 192\), got float32 \(3, 192\)"),
        (np.zeros((3, 192), np.complex128), r"got complex128 \(3, 192\)"),
        (None, "expected a tensor, an array or a list of lists of numbers, got NoneType"),
        ("vectors", "expected a tensor, an array or a list of lists of numbers, got str|could not convert"),
        ([[0.0] * 192, [0.0]], "expected numbers, as many in each row: "),
        ([["a"] * 192], "expected numbers, as many in each row: could not convert"),
        ([[10**400] * 192], "expected numbers, as many in each row: int too large"),
        (np.array([[10**400]], object), "expected numbers, as many in each row: int too large"),
        ([], r"got float32 \(0,\)"),
        (zeros_but((2, float("nan"))), "row 2: expected finite numbers, got nan"),
        (zeros_but((3, float("inf")), (1, float("-inf"))), "row 1: expected finite numbers, got -inf"),
        (zeros_but((0, 1e300)), "row 0: expected finite numbers, got inf"),
        (zeros_but((2, float("nan"))).numpy(), "row 2: expected finite numbers, got nan"),
        (zeros_but((2, 1e300)).tolist(), "row 2: expected finite numbers, got inf"),
        (zeros_but((1, 70000.0)).half(), "row 1: expected finite numbers, got inf"),
    ],
)
def test_vectors_that_are_none_are_refused_by_their_row(demo: Captioner, vectors: Any, message: str) -> None:
    for step in (demo.project, demo.decode, partial(demo.decode, beams=3)):
        with pytest.raises(PatchcaptionError, match=f"vectors: .*{message}"):
            step(vectors)


def test_arrays_and_lists_are_vectors(demo: Captioner) -> None:
    vectors = torch.randn(3, 192, generator=torch.Generator().manual_seed(0))
    expected = demo.decode(demo.project(vectors))
    for same in (vectors.numpy(), vectors.tolist(), vectors.double(), np.asfortranarray(vectors.numpy())):
        assert demo.decode(demo.project(same)) == expected
    assert demo.decode(vectors[:0]) == []


@pytest.mark.parametrize("number", [0, -1, 513, 10_000, 1.5, "2"])
def test_threads_that_cannot_be_meant_are_refused(demo: Captioner, demo_bundle: Path, number: Any) -> None:
    message = f"expected a whole number from 1 to 512, got {number!r}"
    for backend in ("cpu", "openvino", "auto"):
        with pytest.raises(PatchcaptionError, match=f"threads: {message}"):
            Captioner.load(demo_bundle, backend, threads=number)
    with pytest.raises(PatchcaptionError, match=f"callers: {message}"):
        demo.encoder(number)
    with pytest.raises(PatchcaptionError, match=f"workers: {message}"):
        demo.stream([SCENE.image], [WholeImage()], workers=number)


def test_unknown_backends_and_fits_are_refused(demo_bundle: Path) -> None:
    with pytest.raises(BackendError, match="backend 'tpu': expected one of 'auto', 'cpu', 'openvino'"):
        Captioner.load(demo_bundle, backend="tpu")
    with pytest.raises(PatchcaptionError, match="fit 'zoom'"):
        Captioner.load(demo_bundle, fit="zoom")  # type: ignore[arg-type]


def test_a_missing_onnx_runtime_is_said_with_the_fix(demo_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(BackendError, match=r"pip install 'patchcaption\[cpu\]'.*install one of them only"):
        Captioner.load(demo_bundle)


def test_a_closed_captioner_says_so(demo_bundle: Path) -> None:
    captioner = Captioner.load(demo_bundle)
    captioner.close()
    captioner.close()
    with pytest.raises(BackendError, match="closed"):
        captioner.encode(SCENE.image)


def test_importing_the_runtime_loads_no_backend() -> None:
    heavy = ("onnxruntime", "openvino", "tensorrt", "transformers", "onnx")
    code = f"import sys, runtime; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_runtime_does_not_import_the_exporter() -> None:
    for file in (ROOT / "runtime").rglob("*.py"):
        assert not re.search(r"^\s*(from|import) export\b", file.read_text(), flags=re.MULTILINE), file


def test_sets_and_lists_of_boxes_mean_the_same(demo: Captioner) -> None:
    features = demo.encode(SCENE.image)
    box = FIRST.box
    as_numbers = BoxSet([(box.x1, box.y1, box.x2, box.y2), SECOND.box])
    torch.testing.assert_close(
        demo.vectors(features, [as_numbers]), demo.vectors(features, [scenes.pair_region(FIRST, SECOND)])
    )


@pytest.mark.parametrize("backend", [OrtBackend, partial(OrtGpuBackend, CPU, torch.device("cpu"))])
def test_a_captioner_that_was_closed_and_dropped_leaves_nothing_to_the_garbage_collector(
    bundle: Bundle, backend: Callable[[], Backend]
) -> None:
    """A collector that comes by seldom would leave the bank and the cache of each on a GPU."""
    gc.collect()
    gc.disable()
    try:
        with captioner_of(bundle, backend()) as captioner:
            features = captioner.encode(SCENE.image)
            kinds: list[DescribeKeywords] = [{}, {"clean": "orthogonal"}, {"reencode": "mean"}, {"beams": 2}]
            for options in kinds:
                captioner.describe(features, [FIRST.box], **options)
            pipeline = captioner.pipeline
            stages = pipeline, pipeline.encoder, pipeline.pooler, pipeline.projector, pipeline.decoder
            held = [weakref.ref(stage) for stage in stages]
        del captioner, pipeline, stages
        assert [type(stage()).__name__ for stage in held if stage() is not None] == []
    finally:
        gc.enable()
