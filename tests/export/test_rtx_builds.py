"""Every exported graph, parsed and built by NVIDIA's own parser and builder, and what it fused of them.

A missing package fails these tests: `make test` installs it.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest

from export.graphs.exporter import export_graph
from export.graphs.specs import backbone_spec
from export.plans.profiles import profiles_of
from export.readers import read_checkpoint
from runtime.bundle import Bundle, EngineName, EnginePrecision, ShapeRange
from runtime.bundle.graph_io import PIXEL_VALUES
from tests.conftest import build_once
from tests.rtx_builder import PlanReport, build_report

GRAPHS: tuple[EngineName, ...] = ("backbone", "reencoder", "decoder", "beam_decoder")
HALVES: tuple[EnginePrecision, ...] = ("fp16", "bf16")
FLOATS: tuple[EnginePrecision, ...] = ("fp32", *HALVES)


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[EnginePrecision, Bundle]:
    """The demo as it is exported for TensorRT."""
    options = ("--backend", "tensorrt", "--without-plans", "--precision")
    return {
        precision: Bundle(build_once(tmp_path_factory, "demo", f"demo-graphs-{precision}", *options, precision))
        for precision in FLOATS
    }


@cache
def report_of(bundle: Bundle, name: EngineName) -> PlanReport:
    """Return the report of a graph with its largest profile alone, as a profile more lists all layers once more."""
    return build_report(bundle.path(bundle.manifest.engines[name].file), profiles_of(bundle.manifest)[name][-1:])


@pytest.mark.parametrize("precision", FLOATS)
@pytest.mark.parametrize("name", GRAPHS)
def test_the_builder_takes_every_graph_with_all_its_profiles(
    bundles: dict[EnginePrecision, Bundle], name: EngineName, precision: EnginePrecision
) -> None:
    bundle = bundles[precision]
    profiles = profiles_of(bundle.manifest)[name]
    report = build_report(bundle.path(bundle.manifest.engines[name].file), profiles)
    assert len(report.activation_bytes) == len(profiles)


@pytest.mark.parametrize("precision", HALVES)
def test_every_attention_is_one_kernel(bundles: dict[EnginePrecision, Bundle], precision: EnginePrecision) -> None:
    manifest = bundles[precision].manifest
    fused = {name: report_of(bundles[precision], name).fused_attentions for name in GRAPHS}
    layers = manifest.decoder.num_layers
    assert fused == {"backbone": manifest.backbone.depth, "reencoder": 1, "decoder": layers, "beam_decoder": layers}


@pytest.mark.parametrize("precision", HALVES)
def test_nothing_is_converted_by_itself_but_the_vectors_at_the_door(
    bundles: dict[EnginePrecision, Bundle], precision: EnginePrecision
) -> None:
    """Vectors come in float32 from the memory bank; all other conversions are part of kernels that compute."""
    conversions = {name: len(report_of(bundles[precision], name).conversions) for name in GRAPHS}
    assert conversions == {"backbone": 0, "reencoder": 0, "decoder": 1, "beam_decoder": 1}


@pytest.mark.slow
@pytest.mark.parametrize("checkpoint", ["dinov2_vits14_reg", "dinov2_vits14"])
def test_every_block_of_a_published_backbone_is_fused(tmp_path: Path, checkpoint: str) -> None:
    backbone = read_checkpoint(f"seeded:{checkpoint},size=98,memory=8").backbone
    export_graph(backbone_spec(backbone), tmp_path, "fp16")
    shape = (1, 98, 98, 3)
    report = build_report(tmp_path / "backbone.onnx", [{PIXEL_VALUES: ShapeRange(min=shape, opt=shape, max=shape)}])
    assert report.fused_attentions == 12
    assert report.conversions == []
