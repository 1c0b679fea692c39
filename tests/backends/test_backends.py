"""Backends beside ONNX Runtime: the same graphs, the same captions."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from benchmarks.scoring.demo_scenes import evaluation_cases
from export.demo import scenes
from runtime import BackendError, Box, Captioner
from runtime.backends import open_backend
from runtime.backends.openvino import OpenVinoBackend
from runtime.bundle import Bundle, EngineFiles

openvino = pytest.importorskip("openvino", reason="needs pip install 'patchcaption[openvino]'")

HAS_BF16 = "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
SEEDS = range(scenes.HELD_OUT_SEED, scenes.HELD_OUT_SEED + 40)
SCENES = [scenes.draw_scene(seed) for seed in SEEDS]
REGIONS = [[case.region for case in evaluation_cases(scene, seed)] for scene, seed in zip(SCENES, SEEDS, strict=True)]


@pytest.fixture(scope="module")
def opened(demo_bundle: Path) -> Iterator[Captioner]:
    with Captioner.load(demo_bundle, backend="openvino") as captioner:
        yield captioner


def texts(captioner: Captioner) -> list[str]:
    captions = captioner.caption([scene.image for scene in SCENES], REGIONS)
    return [caption.text for of_image in captions for caption in of_image]


@pytest.mark.slow
def test_openvino_computes_what_onnx_runtime_does(demo: Captioner, opened: Captioner) -> None:
    assert opened.backend.name.startswith("openvino ")
    assert opened.backend.name.endswith(" CPU fp32")
    theirs, ours = (captioner.encode(SCENES[0].image) for captioner in (opened, demo))
    torch.testing.assert_close(theirs.tokens, ours.tokens, rtol=1e-3, atol=1e-4)  # float32, other orders of sums
    torch.testing.assert_close(theirs.cls_attention_logits, ours.cls_attention_logits, rtol=1e-3, atol=1e-4)
    boxes = [one.box for one in SCENES[0].objects]
    again = [
        captioner.vectors(captioner.encode(SCENES[0].image), boxes, reencode="cls") for captioner in (opened, demo)
    ]
    torch.testing.assert_close(*again, rtol=1e-3, atol=1e-4)
    assert texts(opened) == texts(demo)


@pytest.mark.skipif(not HAS_BF16, reason="this CPU does not multiply bfloat16")
def test_bfloat16_says_the_same_in_99_of_100_captions(demo: Captioner, demo_bundle: Path) -> None:
    with Captioner.load(demo_bundle, backend="openvino", precision="bf16") as captioner:
        assert captioner.backend.name.endswith(" CPU bf16")
        theirs, ours = texts(captioner), texts(demo)
        features = captioner.encode(SCENES[0].image)
    assert sum(one == other for one, other in zip(theirs, ours, strict=True)) >= 0.99 * len(ours)
    exact = demo.encode(SCENES[0].image).tokens
    assert not torch.equal(features.tokens, exact), "it was not computed in bfloat16"
    assert torch.cosine_similarity(features.tokens, exact, dim=-1).mean() > 0.9995


def test_a_missing_package_is_named_with_the_fix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(BackendError, match=r"OpenVINO cannot be imported .* pip install 'patchcaption\[openvino\]'"):
        open_backend("openvino")


def test_a_precision_that_is_not_there_is_refused_never_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        BackendError, match="precision 'bf16': the backend 'cpu' computes in .* use fp32, or the backend openvino"
    ):
        open_backend("cpu", precision="bf16")
    with pytest.raises(BackendError, match="precision 'int3': with the backend 'openvino' expected fp32 or bf16"):
        open_backend("openvino", precision="int3")  # type: ignore[arg-type]
    with pytest.raises(BackendError, match="precision 'int3': with OpenVINO expected one of fp32, bf16"):
        OpenVinoBackend(precision="int3")  # type: ignore[arg-type]
    monkeypatch.setattr(openvino.Core, "get_property", lambda *_: ["FP32"])
    with pytest.raises(BackendError, match="this CPU does not multiply bfloat16; use fp32"):
        OpenVinoBackend(precision="bf16")


def test_graphs_that_cannot_be_opened_or_run_are_named(tmp_path: Path, demo_bundle: Path) -> None:
    (tmp_path / "broken.onnx").write_bytes(b"no graph")
    with pytest.raises(BackendError, match="broken.onnx: OpenVINO cannot load it"):
        OpenVinoBackend().open(EngineFiles(tmp_path / "broken.onnx"))
    engine = OpenVinoBackend(threads=1).open(Bundle(demo_bundle, verify=False).engine("reencoder"))
    with pytest.raises(BackendError, match="reencoder.onnx: OpenVINO cannot run it"):
        engine.run({"no such input": torch.zeros(1)})
    engine.close()
    with pytest.raises(BackendError, match="it was closed"):
        engine.run({})


def test_results_do_not_change_when_the_engine_runs_again(opened: Captioner) -> None:
    first = opened.encode(SCENES[0].image).tokens
    before = first.clone()
    opened.encode(SCENES[1].image)
    torch.testing.assert_close(first, before, rtol=0, atol=0)
    assert opened.describe(opened.encode(SCENES[0].image), [Box(0, 0, 50, 50)])[0].text
