"""Bundles in int8 for CPUs: what their manifests say, and what captions lose by the rounding."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from benchmarks.scoring.demo_scenes import evaluation_cases
from export.demo import scenes
from runtime import BackendError, Caption, Captioner, FeatureMap, WholeImage
from runtime.backends import open_backend
from runtime.bundle import Bundle
from runtime.options import Precision
from runtime.system.machine import multiplies_bfloat16
from tests.conftest import build_once

SEEDS = range(scenes.HELD_OUT_SEED, scenes.HELD_OUT_SEED + 40)
SCENES = [scenes.draw_scene(seed) for seed in SEEDS]
REGIONS = [[case.region for case in evaluation_cases(scene, seed)] for scene, seed in zip(SCENES, SEEDS, strict=True)]


@pytest.fixture(scope="module")
def int8_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_once(tmp_path_factory, "demo", "demo-int8", "--precision", "int8")


@pytest.fixture(scope="module")
def exact(demo: Captioner) -> tuple[FeatureMap, list[str]]:
    """What the scenes are in float32, and the captions of their regions."""
    features = demo.encode([scene.image for scene in SCENES])
    return features, texts_of(demo.describe(features, REGIONS))


def texts_of(captions: Sequence[Sequence[Caption]]) -> list[str]:
    return [caption.text for of_image in captions for caption in of_image]


def test_the_manifest_says_int8_and_how_far_it_is_from_the_module(int8_bundle: Path, demo_bundle: Path) -> None:
    manifest = Bundle(int8_bundle).manifest
    assert len(manifest.engines) == 4
    for engine, record in manifest.engines.items():
        assert record.precision == ("int8" if engine == "backbone" else "int8_weights")
        assert 1e-3 < record.max_error < 0.2
    for name, share in (("backbone", 0.5), ("reencoder", 0.3), ("decoder", 0.35)):
        sizes = [(folder / f"{name}.onnx.data").stat().st_size for folder in (int8_bundle, demo_bundle)]
        assert sizes[0] < share * sizes[1], name


@pytest.mark.slow
@pytest.mark.parametrize(("backend", "precision"), [("cpu", "fp32"), ("openvino", "fp32"), ("openvino", "bf16")])
def test_int8_says_the_same_in_99_of_100_captions(
    int8_bundle: Path, exact: tuple[FeatureMap, list[str]], backend: str, precision: Precision
) -> None:
    if backend == "openvino":
        pytest.importorskip("openvino")
    if precision == "bf16" and not multiplies_bfloat16():
        pytest.skip("this processor does not multiply bfloat16")
    images = [scene.image for scene in SCENES]
    with Captioner.load(int8_bundle, backend=backend, precision=precision) as captioner:
        features = captioner.encode(images)
        texts = texts_of(captioner.describe(features, REGIONS))
        alone = captioner.encode(images[3]).tokens[0]
    exact_features, exact_texts = exact
    cosines = torch.cosine_similarity(features.tokens, exact_features.tokens, dim=-1)
    assert 0.999 < cosines.mean() < 0.99999, "in float32 it would be nearer"
    assert sum(one == other for one, other in zip(texts, exact_texts, strict=True)) >= 0.99 * len(texts)
    torch.testing.assert_close(alone, features.tokens[3], rtol=0, atol=0 if precision == "fp32" else 0.1)


def test_all_engines_of_an_int8_bundle_run(int8_bundle: Path) -> None:
    with Captioner.load(int8_bundle) as captioner:
        features = captioner.encode(SCENES[0].image)
        boxes = [one.box for one in SCENES[0].objects]
        assert all(caption.text for caption in captioner.describe(features, boxes, beams=3, reencode="mean"))
        assert captioner.describe(features, [WholeImage()])[0].text


def test_bfloat16_beside_int8_is_openvino_s_alone(int8_bundle: Path) -> None:
    with pytest.raises(
        BackendError, match="precision 'bf16': the backend 'cpu' computes in the precision of the graph"
    ):
        Captioner.load(int8_bundle, "cpu", precision="bf16")


def test_int8_is_chosen_when_building_not_when_loading() -> None:
    with pytest.raises(BackendError, match="precision 'int8': with the backend 'cpu' expected fp32"):
        open_backend("cpu", precision="int8")  # type: ignore[arg-type]
