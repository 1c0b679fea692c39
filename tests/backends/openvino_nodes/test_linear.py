"""Products in 8 bits that OpenVINO leaves to the native kernels: which, what goes with them, and the same results."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor

from export.graphs.exporter import export_graph
from export.graphs.specs import backbone_spec
from export.models.clip import ClipBackbone, ClipConfig
from export.models.dinov2 import Dinov2Backbone, Dinov2Config
from export.models.dinov3 import Dinov3Backbone, Dinov3Config
from export.models.siglip2 import Siglip2Backbone, Siglip2Config
from runtime.backends.native_linear import NativeLinear, native_linear
from runtime.backends.openvino import OpenVinoBackend
from runtime.bundle import EngineFiles
from runtime.errors import BackendError
from runtime.system.machine import multiplies_bfloat16
from tests.exported_forms import randomized

pytest.importorskip("openvino", reason="needs pip install 'patchcaption[openvino]'")

from runtime.backends import openvino_nodes  # imports OpenVINO
from runtime.backends.openvino_nodes import attention as attention_nodes
from runtime.backends.openvino_nodes import linear as linear_nodes
from runtime.backends.openvino_nodes.base import NativeNodes
from runtime.backends.openvino_nodes.linear import LinearNode, use_native_linear
from tests.backends.openvino_nodes.conftest import TorchLinear
from tests.backends.openvino_nodes.test_attention import TorchAttention

Kind = tuple[bool, tuple[tuple[int, ...], ...], bool, bool]
"""Of a node: norm before, inputs and outputs of each layer, GELU after the first, residual after."""
MIN_COSINE = 0.9999
"""Of tokens: values that lie between two steps may fall to either."""
MIN_BFLOAT16_COSINE = 0.995
WIDTH = 64
needs_bfloat16 = pytest.mark.skipif(not multiplies_bfloat16(), reason="this processor does not multiply bfloat16")
BACKBONES = {
    "dinov2": Dinov2Backbone(Dinov2Config(128, 2, num_heads=2, num_registers=4, image_size=56, attention_heads=2)),
    "dinov3": Dinov3Backbone(Dinov3Config(128, 1, num_heads=2, num_registers=4, image_size=64)),
    "siglip2": Siglip2Backbone(Siglip2Config(64, 1, num_heads=2, hidden_width=128, patch_size=14, image_size=56)),
    "clip": ClipBackbone(ClipConfig(128, 1, num_heads=2, output_dim=64, patch_size=14, image_size=56)),
}


def qkv(width: int, times: int = 3) -> Kind:
    return True, ((width, times * width),), False, False


def out(width: int) -> Kind:
    return False, ((width, width),), False, True


MLP: Kind = (True, ((128, 512), (512, 128)), True, True)
EXPECTED: dict[str, dict[Kind, int]] = {
    "dinov2": {qkv(128): 2, out(128): 2, MLP: 2},
    "dinov3": {qkv(128): 1, out(128): 1, MLP: 1},
    # Their GELUs are others: each product of an MLP is a node.
    "clip": {qkv(128): 1, out(128): 1, (True, ((128, 512),), False, False): 1, (False, ((512, 128),), False, True): 1},
    # Also the pooling head, whose query is a weight.
    "siglip2": {
        qkv(64): 1,
        out(64): 1,
        qkv(64, 1): 2,
        (False, ((64, 64),), False, False): 1,
        (True, ((64, 128),), False, False): 2,
        (False, ((128, 64),), False, True): 2,
    },
}


@pytest.fixture(scope="module", params=BACKBONES)
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """A backbone's name and its graph in 8 bits."""
    backbone, folder = randomized(BACKBONES[request.param]), tmp_path_factory.mktemp("graph")
    pixels = torch.randint(0, 256, (1, *[backbone.image_size] * 2, 3), dtype=torch.uint8)
    export_graph(backbone_spec(backbone, pixels), folder, "int8")
    return request.param, folder / "backbone.onnx"


def read(path: Path) -> Any:
    return OpenVinoBackend()._core.read_model(str(path))


def compiled(graph: Any, precision: str = "f32") -> Any:
    settings = {"INFERENCE_PRECISION_HINT": precision, "ENABLE_CPU_PINNING": False}
    return OpenVinoBackend()._core.compile_model(graph, "CPU", settings)


class NativeModel:
    """A compiled graph whose products are left to the kernels."""

    def __init__(self, path: Path, linear: NativeLinear, number_format: str = "f32") -> None:
        graph, self.nodes = read(path), NativeNodes()
        use_native_linear(graph, linear, self.nodes, number_format, min_tokens=1)
        self.node_count = self.nodes.count(LinearNode)
        self.nodes.join()
        graph.validate_nodes_and_infer_types()
        self.compiled = compiled(graph, number_format)
        self.nodes.complete()


def first_output(model: Any, inputs: npt.NDArray[Any]) -> Tensor:
    return torch.from_numpy(model(inputs)[model.output(0)])


def test_the_kernels_compute_what_openvino_does(exported: tuple[str, Path], linear: NativeLinear) -> None:
    _, path = exported
    model = NativeModel(path, linear)
    assert model.node_count > 0
    plain = compiled(read(path))
    sizes = [size.get_length() for size in list(plain.input(0).get_partial_shape())[1:]]
    for images in (1, 3):
        pixels = np.random.default_rng(0).integers(0, 256, (images, *sizes), dtype=np.uint8)
        theirs, ours = first_output(plain, pixels), first_output(model.compiled, pixels)
        assert torch.cosine_similarity(theirs, ours, dim=-1).min() > MIN_COSINE


def test_products_take_what_surrounds_them(exported: tuple[str, Path]) -> None:
    name, path = exported
    found = Counter(
        (
            match.layers[0].norm is not None,
            tuple(layer.weights.shape for layer in match.layers),
            match.layers[0].has_gelu,
            match.residual is not None,
        )
        for match in linear_nodes._matches(read(path), 1)
    )
    assert found == EXPECTED[name]


@needs_bfloat16
def test_nodes_hand_bfloat16_to_each_other(exported: tuple[str, Path], linear: NativeLinear) -> None:
    name, path = exported
    model = NativeModel(path, linear, "bf16")
    plain = compiled(read(path), "bf16")
    sizes = [size.get_length() for size in list(plain.input(0).get_partial_shape())[1:]]
    pixels = np.random.default_rng(0).integers(0, 256, (2, *sizes), dtype=np.uint8)
    theirs, ours = first_output(plain, pixels), first_output(model.compiled, pixels)
    assert torch.cosine_similarity(theirs, ours, dim=-1).min() > MIN_BFLOAT16_COSINE
    if name == "dinov2":
        executed = [one.get_rt_info()["layerType"].astype(str) for one in model.compiled.get_runtime_model().get_ops()]
        # Of pixels, before the first block, after the last, and around the attention of the two.
        assert executed.count("Convert") <= 7


def graph_of(
    tmp_path: Path,
    nodes: Sequence[onnx.NodeProto],
    arrays: dict[str, npt.NDArray[Any]],
    outputs: Sequence[str] = ("y",),
) -> Path:
    """Write a graph from x (1, rows, 64) to outputs, in which ``weight`` (64, 64) is one in 8 bits."""
    generator = np.random.default_rng(0)
    shared = {
        "scale": np.float32(0.02),
        "zero": np.int8(0),
        "weights": generator.integers(-63, 64, (WIDTH, WIDTH), np.int8),
        "weight_scale": np.full(WIDTH, 0.002, np.float32),
        "weight_zero": np.zeros(WIDTH, np.int8),
        "vector": generator.uniform(0.5, 1, WIDTH).astype(np.float32),
        **arrays,
    }
    dequantized = helper.make_node("DequantizeLinear", ["weights", "weight_scale", "weight_zero"], ["weight"], axis=1)
    shape = [1, 8, WIDTH]
    graph = helper.make_graph(
        [dequantized, *nodes],
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in outputs],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in shared.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, tmp_path / "graph.onnx")
    return tmp_path / "graph.onnx"


def rounded(name: str, zero: str = "zero") -> list[onnx.NodeProto]:
    """Round a value to 8 bits: ``NAME.rounded``."""
    return [
        helper.make_node("QuantizeLinear", [name, "scale", zero], [f"{name}.steps"]),
        helper.make_node("DequantizeLinear", [f"{name}.steps", "scale", zero], [f"{name}.rounded"]),
    ]


def node(op_type: str, *names: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(op_type, names[:-1], names[-1:], **attributes)


GRAPHS = {
    "a product": ([*rounded("x"), node("MatMul", "x.rounded", "weight", "y")], 1),
    "a bias that is added or taken away": (
        [
            *rounded("x"),
            node("MatMul", "x.rounded", "weight", "one"),
            node("Sub", "one", "vector", "two"),
            *rounded("two"),
            node("MatMul", "two.rounded", "weight", "three"),
            node("Add", "vector", "three", "y"),
        ],
        1,
    ),
    "a bias that a product is taken from": (
        [*rounded("x"), node("MatMul", "x.rounded", "weight", "one"), node("Sub", "vector", "one", "y")],
        1,
    ),
    "a norm that is read elsewhere too": (
        [
            node("LayerNormalization", "x", "vector", "vector", "normed", epsilon=1e-5),
            *rounded("normed"),
            node("MatMul", "normed.rounded", "weight", "one"),
            node("Mul", "one", "normed", "y"),
        ],
        1,
    ),
    "a norm that two products read": (
        [
            node("LayerNormalization", "x", "vector", "vector", "normed", epsilon=1e-5),
            *rounded("normed"),
            node("MatMul", "normed.rounded", "weight", "one"),
            node("MatMul", "normed.rounded", "weight", "two"),
            node("Mul", "one", "two", "y"),
        ],
        2,
    ),
    "two products of the same input that differ in their weights alone": (
        [
            *rounded("x"),
            node("DequantizeLinear", "others", "weight_scale", "weight_zero", "other", axis=1),
            node("MatMul", "x.rounded", "weight", "one"),
            node("MatMul", "x.rounded", "other", "two"),
            node("Sub", "one", "two", "y"),
        ],
        2,
    ),
    "GELU with the error function": (
        [*rounded("x"), node("MatMul", "x.rounded", "weight", "one"), node("Gelu", "one", "y")],
        1,
    ),
    "GELU with tanh": (
        [*rounded("x"), node("MatMul", "x.rounded", "weight", "one"), node("Gelu", "one", "y", approximate="tanh")],
        1,
    ),
    "GELU's values that are read elsewhere too": (
        [
            *rounded("x"),
            node("MatMul", "x.rounded", "weight", "one"),
            node("Gelu", "one", "two"),
            *rounded("two"),
            node("MatMul", "two.rounded", "weight", "three"),
            node("Mul", "two", "three", "y"),
        ],
        2,
    ),
    "rounded values of GELU that two products read": (
        [
            *rounded("x"),
            node("MatMul", "x.rounded", "weight", "one"),
            node("Gelu", "one", "two"),
            *rounded("two"),
            node("MatMul", "two.rounded", "weight", "three"),
            node("MatMul", "two.rounded", "weight", "four"),
            node("Mul", "four", "three", "y"),
        ],
        3,
    ),
    "a scale and a residual": (
        [
            *rounded("x"),
            node("MatMul", "x.rounded", "weight", "one"),
            node("Mul", "one", "vector", "two"),
            node("Add", "x", "two", "y"),
        ],
        1,
    ),
    "a sum with itself": (
        [*rounded("x"), node("MatMul", "x.rounded", "weight", "one"), node("Add", "one", "one", "y")],
        1,
    ),
    "a sum of two products": (
        [
            *rounded("x"),
            node("DequantizeLinear", "others", "weight_scale", "weight_zero", "other", axis=1),
            node("MatMul", "x.rounded", "weight", "one"),
            node("MatMul", "x.rounded", "other", "two"),
            node("Add", "one", "two", "three"),
            *rounded("three"),
            node("MatMul", "three.rounded", "weight", "y"),
        ],
        3,
    ),
    "products with a conversion to whole numbers between them": (
        [
            *rounded("x"),
            node("MatMul", "x.rounded", "weight", "one"),
            node("Cast", "one", "whole", to=TensorProto.INT32),
            node("Cast", "whole", "two", to=TensorProto.FLOAT),
            *rounded("two"),
            node("MatMul", "two.rounded", "weight", "y"),
        ],
        2,
    ),
    "a residual of fewer rows": (
        [
            *rounded("x"),
            node("MatMul", "x.rounded", "weight", "one"),
            node("ReduceMax", "x", "axes", "row", keepdims=1),
            node("Add", "one", "row", "y"),
        ],
        1,
    ),
    "steps that are not around 0": ([*rounded("x", "offset"), node("MatMul", "x.rounded", "weight", "y")], 0),
    "activations that are not rounded": ([node("MatMul", "x", "weight", "y")], 0),
    "products of activations": (
        [*rounded("x"), node("Transpose", "x.rounded", "turned", perm=[0, 2, 1]),
         node("MatMul", "turned", "x.rounded", "wide"), node("MatMul", "x.rounded", "wide", "y")],
        0,
    ),
}  # fmt: skip
"""Nodes, and how many the kernels make of them."""
EXTRA = {"offset": np.int8(3), "axes": np.array([1]), "others": np.full((WIDTH, WIDTH), 5, np.int8)}


@pytest.mark.parametrize("name", GRAPHS)
def test_what_a_graph_computes_stays(name: str, linear: NativeLinear, tmp_path: Path) -> None:
    nodes, count = GRAPHS[name]
    path = graph_of(tmp_path, nodes, EXTRA)
    model = NativeModel(path, linear)
    assert model.node_count == count
    x = np.random.default_rng(1).normal(size=(1, 8, WIDTH)).astype(np.float32)
    difference = first_output(model.compiled, x) - first_output(compiled(read(path)), x)
    # A value between two steps may fall to either, and moves what it is multiplied with by a weight's step.
    assert difference.abs().max() < 0.02
    assert difference.abs().mean() < 1e-3


def test_a_few_rows_are_left_to_openvino(tmp_path: Path) -> None:
    path = graph_of(tmp_path, GRAPHS["a product"][0], EXTRA)
    for least, count in ((8, 1), (9, 0)):
        nodes = NativeNodes()
        use_native_linear(read(path), TorchLinear(), nodes, "f32", min_tokens=least)  # type: ignore[arg-type]
        assert len(nodes) == count


@pytest.fixture
def dinov2(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> EngineFiles:
    """A backbone whose attention and products the kernels take, though it has few tokens."""
    for kind in (linear_nodes, attention_nodes):
        monkeypatch.setattr(kind, "MIN_TOKENS", 1)
    backbone = randomized(BACKBONES["dinov2"])
    pixels = torch.zeros(1, *[backbone.image_size] * 2, 3, dtype=torch.uint8)
    export_graph(backbone_spec(backbone, pixels), tmp_path, "int8")
    return EngineFiles(tmp_path / "backbone.onnx")


@needs_bfloat16
def test_engines_take_the_kernels_say_so_and_tell_of_failures(
    dinov2: EngineFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernels = TorchLinear()
    monkeypatch.setattr(openvino_nodes, "native_attention", lambda _: TorchAttention())
    monkeypatch.setattr(openvino_nodes, "native_linear", lambda _: kernels)
    engine = OpenVinoBackend(1, "bf16").open(dinov2)
    assert engine.report().provider == "CPU in bf16, attention and products in 8 bits by the native kernels"
    inputs = {"pixel_values": torch.zeros(1, 56, 56, 3, dtype=torch.uint8)}
    engine.run(inputs)
    assert kernels.runs == [(21, 1), (21, 1), (21, 2)] * 2
    monkeypatch.setattr(kernels, "run", lambda *_: 1 / 0)
    with pytest.raises(BackendError, match=r"backbone\.onnx: the native kernels failed: division by zero"):
        engine.run(inputs)
    engine.close()


@needs_bfloat16
def test_products_are_taken_beside_the_kernels_attention_alone(
    dinov2: EngineFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openvino_nodes, "native_linear", lambda _: TorchLinear())
    monkeypatch.setattr(openvino_nodes, "native_attention", lambda _: None)
    assert OpenVinoBackend(1, "bf16").open(dinov2).report().provider == "CPU in bf16"
    monkeypatch.setattr(openvino_nodes, "native_attention", lambda _: TorchAttention())
    assert OpenVinoBackend(1).open(dinov2).report().provider == "CPU in f32"


@needs_bfloat16
def test_the_kernels_are_taken_where_there_are_some(dinov2: EngineFiles) -> None:
    provider = OpenVinoBackend(1, "bf16").open(dinov2).report().provider
    assert ("products in 8 bits by the native kernels" in provider) == (native_linear(1) is not None)
