"""Every exported graph, parsed and built by NVIDIA's own parser and builder, and what it fused of them.

A missing package fails these tests: `make test` installs it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import get_args

import onnx_ir
import pytest
import torch
from PIL import Image

from export.graphs.exporter import export_graph
from export.graphs.qdq import EightBits
from export.graphs.specs import backbone_spec, decoder_specs
from export.lint import lint
from export.models.gpt2 import Gpt2
from export.models.mapping import MappingConfig, MlpMapping, TransformerMapping
from export.models.prompted_decoder import CaptionRules, Gpt2Config, PromptedModel
from export.plans.profiles import engine_profiles, profiles_of
from export.plans.report import PlanReport, build_report
from export.readers import read_checkpoint
from export.readers.seeded import parse
from runtime.backends.tensorrt.rtx import DEFAULT_CAPABILITIES
from runtime.bundle import Bundle, EngineName, EnginePrecision, ShapeRange
from runtime.bundle.graph_io import PIXEL_VALUES, VECTORS
from runtime.image import Fit, prepare
from tests.conftest import build_once
from tests.exported_forms import BACKBONES, SMALL_MAPPING, ExportedGraph, export_prompted, prompted_model, randomized

GRAPHS: tuple[EngineName, ...] = ("backbone", "reencoder", "decoder", "beam_decoder")
HALVES: tuple[EnginePrecision, ...] = ("fp16", "bf16")
FLOATS: tuple[EnginePrecision, ...] = ("fp32", *HALVES)
FAMILY_DEPTH = None if os.environ.get("PATCHCAPTION_ENDURANCE") == "1" else 2
"""Of other families than DINOv2; all of their blocks before a release."""
KERNELS: dict[EngineName, int] = {"backbone": 74, "reencoder": 13, "decoder": 39, "beam_decoder": 35}
"""Of the demo in half precision, with the largest profile: 10 a block of the backbone, 7 a layer of a decoder."""

ATTENTIONS: Mapping[str, int] = {
    **{"clip": 2, "invite": 1, "open_clip": 2, "dinov3": 1, "dinov3_gated": 1, "dinotxt": 3},
    **{"siglip2": 2, "siglip2_mlp": 2, "proxyclip": 3, "regionclip": 1},
}
"""Of other families' small backbones: of ProxyCLIP CLIP's first and its DINO's, of RegionCLIP the last layer's."""

JETPACK_6, NEWEST = (10, 3), (11, 4)
DOOR: dict[EngineName, int] = {"mapping": 1, "prefill": 1, "decoder": 0, "beam_decoder": 0}
"""Conversions of decoders with prompts: of the vectors and soft tokens, which come in float32."""
KERNELS_AFTER_PROMPTS: dict[EngineName, int] = {"mapping": 26, "prefill": 26, "decoder": 22, "beam_decoder": 20}
"""Of a small decoder with prompts in half precision, for each profile."""


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


@pytest.mark.slow
@pytest.mark.parametrize("precision", HALVES)
def test_no_graph_takes_more_kernels_than_it_did(
    bundles: dict[EnginePrecision, Bundle], precision: EnginePrecision
) -> None:
    kernels = {name: len(report_of(bundles[precision], name).layers) for name in GRAPHS}
    assert all(kernels[name] <= most for name, most in KERNELS.items()), kernels


@pytest.mark.parametrize("name", GRAPHS)
def test_turing_takes_every_graph_in_float16(bundles: dict[EnginePrecision, Bundle], name: EngineName) -> None:
    """There products in float32 are refused, so what must stay float32 is multiplied and summed."""
    bundle = bundles["fp16"]
    profiles = profiles_of(bundle.manifest)[name]
    report = build_report(bundle.path(bundle.manifest.engines[name].file), profiles, ("7.5",))
    assert report.fused_attentions == len(profiles) * report_of(bundle, name).fused_attentions


def build_backbone(
    folder: Path,
    size: int,
    compute_capabilities: tuple[str, ...] = DEFAULT_CAPABILITIES,
    most: int = 1,
    channels: int = 3,
) -> PlanReport:
    """Build the backbone in ``folder`` for one image at a time, or for up to so many."""
    alone, together = ((images, size, size, channels) for images in (1, most))
    profile = {PIXEL_VALUES: ShapeRange(min=alone, opt=together, max=together)}
    return build_report(folder / "backbone.onnx", [profile], compute_capabilities)


@pytest.mark.slow
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
@pytest.mark.parametrize("to", get_args(EightBits))
def test_every_product_of_a_weight_is_in_8_bits_and_every_attention_stays_one_kernel(
    tmp_path: Path, demo_bundle: Path, sample_image: Image.Image, to: EightBits
) -> None:
    backbone = read_checkpoint("demo").backbone
    pixels, _ = prepare([sample_image], backbone.image_size, Fit.STRETCH)
    export_graph(backbone_spec(backbone, pixels), tmp_path, to, "cuda")
    report = build_backbone(tmp_path, backbone.image_size, ("8.9", "12.0", "12.1"))
    of_weights = products_in_8_bits(tmp_path / "backbone.onnx")
    depth = Bundle(demo_bundle).manifest.backbone.depth
    assert len(of_weights) == 4 * depth
    assert of_weights <= report.eight_bit_nodes
    assert report.fused_attentions == depth
    assert report.conversions == []


def _dequantizes(value: onnx_ir.Value | None) -> bool:
    producer = value.producer() if value is not None else None
    return producer is not None and producer.op_type == "DequantizeLinear"


@pytest.mark.slow
@pytest.mark.parametrize("name", GRAPHS)
def test_a_plan_holds_each_weight_once(bundles: dict[EnginePrecision, Bundle], name: EngineName) -> None:
    """With all profiles: but for 5 %, which the builder adds as scales of its kernels and the tables of its own."""
    bundle = bundles["fp16"]
    graph = bundle.path(bundle.manifest.engines[name].file)
    report = build_report(graph, profiles_of(bundle.manifest)[name])
    weights = sum(value.const_value.nbytes for value in onnx_ir.load(graph).graph.initializers.values())
    assert report.weights_bytes < 1.05 * weights


@pytest.fixture(scope="module", params=FLOATS)
def prompted(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[EnginePrecision, list[ExportedGraph]]:
    """A small decoder with prompts as it is exported for TensorRT, in each precision."""
    precision: EnginePrecision = request.param
    return precision, export_prompted(tmp_path_factory.mktemp("prompted"), prompted_model(), precision, "cuda")


def build_linted(graph: ExportedGraph) -> PlanReport:
    """Build a graph with all its profiles, where the linter finds nothing wrong."""
    profiles = engine_profiles(graph.engine, graph.manifest)
    for version in (JETPACK_6, NEWEST):
        assert [one for one in lint(graph.path, version, profiles) if one.severity == "error"] == []
    report = build_report(graph.path, profiles)
    assert len(report.activation_bytes) == len(profiles)
    return report


def require_fused(graph: ExportedGraph, attentions: int) -> PlanReport:
    """Build a graph in half precision; with each profile every attention is to be one kernel.

    Moves are not counted: with few rows of a long vocabulary they set what the parts of a split reduction add to.
    """
    report = build_linted(graph)
    profiles = len(report.activation_bytes)
    assert report.fused_attentions == profiles * attentions
    assert sum("Cast" in name for name in report.conversions) <= profiles * DOOR[graph.engine]
    return report


@pytest.mark.slow
def test_the_builder_takes_decoders_with_prompts_and_fuses_every_attention_in_half_precision(
    prompted: tuple[EnginePrecision, list[ExportedGraph]],
) -> None:
    precision, graphs = prompted
    assert {graph.engine for graph in graphs} == set(DOOR)
    for graph in graphs:
        if precision == "fp32":
            build_linted(graph)
            continue
        report = require_fused(graph, attentions=2)
        kernels = len(report.layers) / len(report.activation_bytes)
        assert kernels <= KERNELS_AFTER_PROMPTS[graph.engine], (graph.engine, kernels)


@pytest.mark.slow
def test_turing_takes_decoders_with_prompts_in_float16(
    prompted: tuple[EnginePrecision, list[ExportedGraph]],
) -> None:
    precision, graphs = prompted
    for graph in graphs if precision == "fp16" else ():
        profiles = engine_profiles(graph.engine, graph.manifest)[-1:]
        assert build_report(graph.path, profiles, ("7.5",)).fused_attentions == 2


def test_turing_takes_mappings_without_attention_in_float16(tmp_path: Path) -> None:
    """Their last product makes the soft tokens, which are read in half precision again."""
    spec = decoder_specs(prompted_model(MlpMapping(SMALL_MAPPING)))["mapping"]
    export_graph(spec, tmp_path, "fp16", "cuda")
    shape = (4, SMALL_MAPPING.vector_width)
    profile = {VECTORS: ShapeRange(min=shape, opt=shape, max=shape)}
    assert len(build_report(tmp_path / spec.io.file, [profile], ("7.5",)).conversions) <= 2, "at both doors"


@pytest.mark.slow
@pytest.mark.parametrize("precision", HALVES)
def test_every_attention_of_gpt2_small_after_prompts_is_one_kernel_and_each_weight_is_held_once(
    tmp_path: Path, precision: EnginePrecision
) -> None:
    layers, of_mapping = (12, 8) if FAMILY_DEPTH is None else (FAMILY_DEPTH, FAMILY_DEPTH)
    decoder = gpt2_small_after_prompts(layers, of_mapping)
    for graph in export_prompted(tmp_path, decoder, precision, "cuda", batch_sizes=(1, 16, 256)):
        report = require_fused(graph, of_mapping if graph.engine == "mapping" else layers)
        weights = sum(value.const_value.nbytes for value in onnx_ir.load(graph.path).graph.initializers.values())
        assert report.weights_bytes < 1.05 * weights


def gpt2_small_after_prompts(layers: int, of_mapping: int) -> PromptedModel:
    """Return ClipCap's decoder with a transformer, its weights random, of so many layers."""
    mapping = TransformerMapping(MappingConfig(512, 768, soft_tokens=40, carrier_tokens=40, num_layers=of_mapping))
    rules = CaptionRules("soft_only", max_hard_tokens=0, max_new_tokens=67, unit_vectors=True)
    config = Gpt2Config(768, layers, num_heads=12, vocab_size=50257, positions=106)
    gpt = Gpt2(config.embed_dim, layers, config.num_heads, config.vocab_size, config.positions)
    return randomized(PromptedModel("clipcap", mapping, gpt, config, rules))


@pytest.mark.slow
def test_an_int8_backbone_for_cpus_is_built_too_in_8_bits_with_its_attention_in_one_kernel(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    bundle = Bundle(build_once(tmp_path_factory, "demo", "demo-int8", "--precision", "int8"))
    file = bundle.path(bundle.manifest.engines["backbone"].file)
    report = build_report(file, profiles_of(bundle.manifest)["backbone"][-1:])
    assert report.fused_attentions == bundle.manifest.backbone.depth
    products = {
        str(node.name)
        for node in onnx_ir.load(file).graph
        if node.op_type == "MatMul" and all(producer.op_type == "DequantizeLinear" for producer in node.predecessors())
    }
    assert len(products) == 4 * bundle.manifest.backbone.depth
    assert products <= report.eight_bit_nodes


@pytest.mark.slow
@pytest.mark.parametrize("checkpoint", ["dinov2_vits14_reg", "dinov2_vits14"])
def test_every_block_of_a_published_backbone_is_fused(tmp_path: Path, checkpoint: str) -> None:
    assert fused_attentions(f"{checkpoint},size=98", tmp_path) == 12


@pytest.mark.slow
@pytest.mark.parametrize(
    ("checkpoint", "others"),
    [
        ("clip_vitb16", 0),
        ("clip_vitb16,invite=1", -1),  # that of the last block is none
        ("alphaclip_vitb16", 0),
        ("openclip_vith14", 0),
        ("siglip2_base_patch16", 1),  # the pooling head's
        ("dinov3_vits16", 0),
        ("dinotxt_vitl14", 2),  # the vision head's
    ],
)
def test_every_attention_of_a_family_is_one_kernel(tmp_path: Path, checkpoint: str, others: int) -> None:
    depth = FAMILY_DEPTH or read_depth(checkpoint)
    size = 98 if "14" in checkpoint.partition("_")[2] else 96
    name = f"{checkpoint},size={size}" + (f",depth={depth}" if FAMILY_DEPTH else "")
    assert fused_attentions(name, tmp_path) == depth + others


@pytest.mark.slow
@pytest.mark.parametrize("name", ATTENTIONS)
def test_turing_takes_the_backbones_of_every_family_in_float16(tmp_path: Path, name: str) -> None:
    size = export_small(name, tmp_path, "fp16")
    assert build_backbone(tmp_path, size, ("7.5",)).fused_attentions == ATTENTIONS[name]


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["bf16", "int8"])
@pytest.mark.parametrize("name", ["clip", "dinov3", "dinotxt", "siglip2", "proxyclip", "regionclip"])
def test_the_builder_fuses_the_attention_of_every_family_in_every_precision(
    tmp_path: Path, name: str, precision: EnginePrecision
) -> None:
    report = build_backbone(tmp_path, export_small(name, tmp_path, precision), ("8.9",))
    assert report.fused_attentions == ATTENTIONS[name]
    assert products_in_8_bits(tmp_path / "backbone.onnx") <= report.eight_bit_nodes


def test_the_product_that_makes_tokens_is_not_in_8_bits(tmp_path: Path) -> None:
    export_small("clip", tmp_path, "int8")
    assert len(products_in_8_bits(tmp_path / "backbone.onnx")) == 4 * ATTENTIONS["clip"]


def export_small(name: str, folder: Path, precision: EnginePrecision) -> int:
    """Export a small backbone, where the linter finds nothing wrong; return its input's side."""
    backbone = randomized(BACKBONES[name]())
    side = backbone.image_size
    pixels = torch.randint(0, 256, (1, side, side, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    export_graph(backbone_spec(backbone, pixels), folder, precision, "cuda")
    for version in (JETPACK_6, NEWEST):
        assert [one for one in lint(folder / "backbone.onnx", version) if one.severity == "error"] == []
    return side


def products_in_8_bits(graph: Path) -> set[str]:
    """Return the names of a graph's products of weights that are to be in 8 bits."""
    nodes = onnx_ir.load(graph).graph
    return {str(node.name) for node in nodes if node.op_type == "MatMul" and _dequantizes(node.inputs[1])}


def read_depth(checkpoint: str) -> int:
    return parse(f"seeded:{checkpoint}").architecture.depth


def fused_attentions(checkpoint: str, folder: Path) -> int:
    """Export a backbone in float16; return how many attentions are one kernel, where the linter finds nothing wrong."""
    backbone = read_checkpoint(f"seeded:{checkpoint},memory=8").backbone
    export_graph(backbone_spec(backbone), folder, "fp16", "cuda")
    assert [one for one in lint(folder / "backbone.onnx", (10, 3), (), {}) if one.severity == "error"] == []
    report = build_backbone(folder, backbone.image_size, most=8, channels=3 + backbone.numbers.has_alpha)
    assert report.conversions == []
    return report.fused_attentions
