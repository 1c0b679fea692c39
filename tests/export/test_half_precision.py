"""float16 and bfloat16 in graphs: what is converted, what stays float32, and what captions lose by it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnx_ir
import onnxruntime
import pytest
import torch
from onnx_ir import DataType

from benchmarks.scoring.demo_scenes import evaluation_cases
from export.demo import scenes
from export.graphs import half_precision
from export.graphs.exporter import export_graph
from export.graphs.half_precision import DATA_TYPES, HalfPrecision, convert_to_half, emulate_bf16
from export.graphs.specs import backbone_spec, decap_specs, reencoder_spec
from export.graphs.value_ranges import measure_ranges
from export.models.decap_decoder import DecapConfig, DecapStep
from export.models.dinov2 import Dinov2Backbone, Dinov2Config
from runtime import BackendError, Captioner
from runtime.bundle import Bundle
from runtime.bundle.graph_io import NEXT_TOKEN_IDS, is_cache
from runtime.decoding.kv_cache import KvCache
from tests.conftest import build_once

SIZE, DEPTH, LAYERS = 56, 2, 2
PIXELS = torch.randint(0, 256, (2, SIZE, SIZE, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(5))


@pytest.fixture(scope="module")
def backbone() -> Dinov2Backbone:
    config = Dinov2Config(128, DEPTH, num_heads=2, num_registers=4, image_size=SIZE, attention_heads=2)
    module = Dinov2Backbone(config).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return module


@pytest.fixture(scope="module")
def decoder() -> DecapStep:
    module = DecapStep(
        DecapConfig(prefix_width=32, embed_dim=64, num_layers=LAYERS, vocab_size=100, text_vocab_size=90)
    )
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return module.eval()


def graph_of(path: Path) -> onnx_ir.Graph:
    return onnx_ir.load(path).graph


def dtypes(graph: onnx_ir.Graph, *kinds: str) -> Counter[tuple[str, DataType | None]]:
    return Counter((node.op_type, node.outputs[0].dtype) for node in graph if node.op_type in kinds)


@pytest.mark.parametrize("to", ["fp16", "bf16"])
def test_products_are_in_half_precision_and_what_would_suffer_is_not(
    backbone: Dinov2Backbone, tmp_path: Path, to: HalfPrecision
) -> None:
    assert export_graph(backbone_spec(backbone), tmp_path, to).precision == to
    graph, half = graph_of(tmp_path / "backbone.onnx"), DATA_TYPES[to]
    found = dtypes(graph, "MatMul", "Gelu", "Softmax", "LayerNormalization", "Conv", "ReduceSum")
    assert found["MatMul", half] == 6 * DEPTH
    assert found["ReduceSum", DataType.FLOAT] == 1, "the attention logits that leave the graph"
    assert found["Gelu", half] == found["Softmax", half] == DEPTH
    assert found["LayerNormalization", DataType.FLOAT] == 2 * DEPTH + 1
    assert found["Conv", DataType.FLOAT16 if to == "fp16" else DataType.FLOAT] == 1, "opset 20 has none in bfloat16"
    residual = [node for node in graph if node.op_type == "Add" and node.inputs[1].const_value is None]
    assert {node.outputs[0].dtype for node in residual} == {DataType.FLOAT}
    assert len(residual) == 2 * DEPTH
    assert {value.dtype for value in (*graph.inputs, *graph.outputs)} == {DataType.UINT8, DataType.FLOAT}


@pytest.mark.parametrize("to", ["fp16", "bf16"])
def test_there_are_no_more_casts_than_borders_between_dtypes(
    backbone: Dinov2Backbone, tmp_path: Path, to: HalfPrecision
) -> None:
    export_graph(backbone_spec(backbone), tmp_path, to)
    graph = graph_of(tmp_path / "backbone.onnx")
    casts = [node for node in graph if node.op_type == "Cast"]
    of_pixels, of_patches, of_logits = 1, 2 if to == "fp16" else 0, 2
    assert len(casts) <= of_pixels + of_patches + of_logits + 4 * DEPTH
    for node in casts:
        assert node.inputs[0].producer() is None or node.inputs[0].producer().op_type != "Cast", "there and back"


@pytest.mark.slow
@pytest.mark.parametrize("to", ["fp16", "bf16"])
def test_a_decoder_has_a_cache_in_half_precision_and_one_vocabulary(
    decoder: DecapStep, tmp_path: Path, to: HalfPrecision
) -> None:
    for spec in decap_specs(decoder):
        export_graph(spec, tmp_path, to)
    assert not (tmp_path / "beam_decoder.onnx.data").exists(), "it reads the decoder's weights"
    for name in ("decoder.onnx", "beam_decoder.onnx"):
        graph = graph_of(tmp_path / name)
        cache = [value for value in (*graph.inputs, *graph.outputs) if is_cache(value.name)]
        assert {value.dtype for value in cache} == {DATA_TYPES[to]}
        assert len(cache) == 4 * LAYERS
        others = [value for value in (*graph.inputs, *graph.outputs) if value not in cache]
        assert {value.dtype for value in others} == {DataType.FLOAT, DataType.INT64}
        words = [value for value in graph.initializers.values() if list(value.shape) == [100, 64]]
        assert [value.dtype for value in words] == [DataType.FLOAT16]
        assert dtypes(graph, "Softmax", "Exp", "Log", "LayerNormalization").keys() == {
            (kind, DataType.FLOAT) for kind in ("Softmax", "Exp", "Log", "LayerNormalization")
        }


def test_the_best_token_is_searched_in_the_precision_of_the_logits(decoder: DecapStep, tmp_path: Path) -> None:
    """Where they are cast first, TensorRT writes all logits down a second time."""
    greedy, _ = decap_specs(decoder)
    export_graph(greedy, tmp_path, "fp16")
    graph = graph_of(tmp_path / "decoder.onnx")
    read = {(node.op_type, node.inputs[0].dtype) for node in graph if node.op_type in ("ArgMax", "GatherElements")}
    assert read == {("ArgMax", DataType.FLOAT16), ("GatherElements", DataType.FLOAT16)}
    assert next(value for value in graph.outputs if value.name == NEXT_TOKEN_IDS).dtype == DataType.INT64


def test_a_reencoder_keeps_its_sum_and_its_masked_softmax(backbone: Dinov2Backbone, tmp_path: Path) -> None:
    export_graph(reencoder_spec(backbone), tmp_path, "fp16")
    found = dtypes(graph_of(tmp_path / "reencoder.onnx"), "MatMul", "ReduceSum", "Softmax")
    assert found == {
        ("MatMul", DataType.FLOAT16): 6,
        ("ReduceSum", DataType.FLOAT): 1,
        ("Softmax", DataType.FLOAT): 1,
    }


@pytest.fixture(scope="module")
def float32_graph(backbone: Dinov2Backbone, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("float32")
    export_graph(backbone_spec(backbone), folder)
    return folder / "backbone.onnx"


def loaded(path: Path) -> onnx_ir.Model:
    model = onnx_ir.load(path)
    onnx_ir.external_data.load_to_model(model)
    return model


def test_ranges_are_the_largest_values_of_all_inputs(float32_graph: Path) -> None:
    model = loaded(float32_graph)
    nodes = len(list(model.graph))
    one, other = ({"pixel_values": PIXELS[row : row + 1].numpy()} for row in range(2))
    each, both = [measure_ranges(model, [feed]) for feed in (one, other)], measure_ranges(model, [one, other])
    assert both == {name: max(first, each[1][name]) for name, first in each[0].items()}
    assert len(list(model.graph)) == nodes, "the graph itself is as it was"
    session = onnxruntime.InferenceSession(str(float32_graph), providers=["CPUExecutionProvider"])
    tokens, _ = session.run(None, one)
    assert each[0]["tokens"] == pytest.approx(np.abs(tokens).max(), rel=1e-5)


def test_what_leaves_the_range_of_float16_stays_float32(float32_graph: Path) -> None:
    model = loaded(float32_graph)
    gelu = next(node for node in model.graph if node.op_type == "Gelu")
    sum_of_it = gelu.outputs[0].uses()[0].node
    ranges = dict.fromkeys(measure_ranges(model, [{"pixel_values": PIXELS.numpy()}]), 1.0)
    convert_to_half(model, "fp16", ranges | {sum_of_it.outputs[0].name: 20_000.0})
    found = {node.name: node.outputs[0].dtype for node in model.graph}
    assert found[sum_of_it.name] == DataType.FLOAT, "four times as much would be beyond 65,504"
    assert found[gelu.name] == DataType.FLOAT16
    onnx.checker.check_model(onnx_ir.to_proto(model), full_check=True)


def test_scores_too_large_for_float16_keep_their_softmax_in_float32(float32_graph: Path) -> None:
    model = loaded(float32_graph)
    first, second = (node for node in model.graph if node.op_type == "Softmax")
    convert_to_half(model, "fp16", {first.inputs[0].name: 65.0, second.inputs[0].name: 63.0})
    found = {node.name: node.outputs[0].dtype for node in model.graph}
    assert (found[first.name], found[second.name]) == (DataType.FLOAT, DataType.FLOAT16)


def test_weights_beyond_float16_stay_float32(float32_graph: Path) -> None:
    model = loaded(float32_graph)
    bias = model.graph.initializers["blocks.0.mlp.fc1.bias"]
    bias.const_value = onnx_ir.tensor(np.full(bias.shape.numpy(), 7e4, np.float32), name=bias.name)
    convert_to_half(model, "fp16")
    assert "blocks.0.mlp.fc1.bias" in model.graph.initializers
    for value in model.graph.initializers.values():
        if value.dtype == DataType.FLOAT16:
            assert np.isfinite(value.const_value.numpy()).all(), value.name


def test_massive_activations_of_the_residual_stream_do_no_harm(backbone: Dinov2Backbone, tmp_path: Path) -> None:
    """As trained DINOv2 has them: a channel of thousands. Alone in the stream, it fills float16 to its last bits."""
    module = Dinov2Backbone(backbone.config).eval()
    module.load_state_dict(backbone.state_dict())
    with torch.no_grad():
        module.pos_embed[..., 3] = 30_000.0
        module.get_parameter("blocks.0.ls2.gamma")[7] = 50_000.0
    record = export_graph(backbone_spec(module), tmp_path, "fp16")
    assert record.max_error < 0.02


def test_emulated_bfloat16_has_values_of_bfloat16_in_float32(float32_graph: Path) -> None:
    model = loaded(float32_graph)
    convert_to_half(model, "bf16")
    copy = emulate_bf16(model)
    assert not [node for node in copy.graph if node.op_type == "MatMul" and node.outputs[0].dtype != DataType.FLOAT]
    assert [node for node in model.graph if node.op_type == "MatMul" and node.outputs[0].dtype == DataType.BFLOAT16]
    gelu = next(node for node in copy.graph if node.op_type == "Gelu")
    (to_bf16,) = [use.node for use in gelu.outputs[0].uses()]
    (to_fp32,) = [use.node for use in to_bf16.outputs[0].uses()]
    to_fp32.outputs[0].name = "rounded_gelu"
    copy.graph.outputs.append(to_fp32.outputs[0])
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(
        onnx_ir.to_proto(copy).SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    (rounded,) = session.run(["rounded_gelu"], {"pixel_values": PIXELS.numpy()})
    assert (rounded.view(np.uint32) & 0xFFFF == 0).all(), "the lower half of each float32 is empty"
    assert len(np.unique(rounded)) > 1000


def test_an_operator_is_converted_only_where_its_opset_has_the_dtype() -> None:
    convolution = onnx_ir.Node("", "Conv", [])
    assert half_precision._accepts_dtype(convolution, DataType.FLOAT16)
    assert not half_precision._accepts_dtype(convolution, DataType.BFLOAT16)


SEEDS = range(scenes.HELD_OUT_SEED, scenes.HELD_OUT_SEED + 40)
SCENES = [scenes.draw_scene(seed) for seed in SEEDS]
REGIONS = [[case.region for case in evaluation_cases(scene, seed)] for scene, seed in zip(SCENES, SEEDS, strict=True)]


@pytest.mark.slow
def test_fp16_says_the_same_in_99_of_100_captions(tmp_path_factory: pytest.TempPathFactory, demo: Captioner) -> None:
    folder = build_once(tmp_path_factory, "demo", "demo-fp16", "--precision", "fp16")
    assert Bundle(folder).manifest.decoder.cache_precision == "fp16"
    images = [scene.image for scene in SCENES]
    with Captioner.load(folder, "cpu") as captioner:
        features, exact = captioner.encode(images), demo.encode(images)
        theirs, ours = captioner.describe(features, REGIONS), demo.describe(exact, REGIONS)
        assert captioner.describe(features[0], REGIONS[0][:2], beams=3)[0].text
    cosines = torch.cosine_similarity(features.tokens, exact.tokens, dim=-1)
    assert 0.9999 < cosines.min() < 1 - 1e-7, "in float32 it would be nearer"
    texts = [[caption.text for of_image in captions for caption in of_image] for captions in (theirs, ours)]
    assert sum(one == other for one, other in zip(*texts, strict=True)) >= 0.99 * len(texts[0])


def test_a_bf16_bundle_is_for_gpus(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = build_once(tmp_path_factory, "demo", "demo-bf16", "--precision", "bf16")
    config = Bundle(folder).manifest.decoder
    assert config.cache_precision == "bf16"
    cache = KvCache(config, 2, torch.device("cpu")).inputs()
    assert cache["past_key_values.0.key"].dtype == torch.bfloat16
    for backend in ("cpu", "openvino", "auto"):
        with pytest.raises(
            BackendError, match="its graphs are bf16, .* expected fp32, .*: build the bundle with such a --precision"
        ):
            Captioner.load(folder, backend)
