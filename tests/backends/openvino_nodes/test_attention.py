"""Attention that OpenVINO leaves to the native kernels: which nodes, and the same results."""

from __future__ import annotations

import gc
import sys
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx_ir
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from export.graphs.attention_fusion import fuse_attention
from export.graphs.exporter import export_graph
from export.graphs.specs import backbone_spec, reencoder_spec
from export.models.clip import ClipBackbone, ClipConfig
from export.models.dinov2 import Dinov2Backbone, Dinov2Config
from export.models.dinov3 import Dinov3Backbone, Dinov3Config
from export.models.siglip2 import Siglip2Backbone, Siglip2Config
from runtime.backends.native_attention import QKV, AttentionShape, NativeAttention, native_attention
from runtime.backends.openvino import OpenVinoBackend
from runtime.bundle import Bundle
from runtime.bundle.admission import engine_contract
from runtime.errors import BackendError
from runtime.system.machine import multiplies_bfloat16
from tests.backends.native import DTYPES, or_skip, tensor_at
from tests.children import run_child
from tests.robustness.graph_mutants import inputs_of

pytest.importorskip("openvino", reason="needs pip install 'patchcaption[openvino]'")

from runtime.backends import openvino_nodes  # imports OpenVINO
from runtime.backends.openvino_nodes import attention as attention_nodes
from runtime.backends.openvino_nodes import base
from runtime.backends.openvino_nodes.attention import use_native_attention
from runtime.backends.openvino_nodes.base import NativeNodes

needs_bfloat16 = pytest.mark.skipif(not multiplies_bfloat16(), reason="this processor does not multiply bfloat16")
MIN_COSINE = 0.9999
"""Of tokens, where attention alone is in bfloat16."""
MIN_BFLOAT16_COSINE = 0.9995
"""Of tokens, where all products are."""
BACKBONES = {
    "dinov2": (Dinov2Backbone, Dinov2Config(128, 2, num_heads=2, num_registers=4, image_size=56, attention_heads=2), 2),
    "dinov3": (Dinov3Backbone, Dinov3Config(128, 1, num_heads=2, num_registers=4, image_size=64), 1),
    "siglip2": (Siglip2Backbone, Siglip2Config(64, 2, num_heads=2, hidden_width=96, patch_size=14, image_size=56), 2),
    "heads of 48": (ClipBackbone, ClipConfig(96, 2, num_heads=2, output_dim=64, patch_size=14, image_size=56), 0),
}
"""Backbones, and how many of their attentions the kernels can compute: not that of one query, nor of such heads."""


class TorchAttention:
    """The kernels' interface, computed by torch, for processors that they have no attention for."""

    def __init__(self) -> None:
        self.shapes: list[AttentionShape] = []

    def attend(self, qkv: QKV, shape: AttentionShape, scale: float, number_format: str, attended: int) -> None:
        self.shapes.append(shape)
        sizes = (shape.images, shape.heads, shape.tokens, shape.head_width)
        strides = [(heads.image_stride, heads.head_stride, heads.token_stride, 1) for heads in qkv]
        tensors = [
            tensor_at(heads.address, DTYPES[number_format], sizes, own) for heads, own in zip(qkv, strides, strict=True)
        ]
        queries, keys, values = (tensor.float() for tensor in tensors)
        result = F.scaled_dot_product_attention(queries, keys, values, scale=scale).transpose(1, 2)
        assert number_format == "bf16"
        tensor_at(attended, DTYPES[number_format], result.shape).copy_(result)


@pytest.fixture(params=["kernels", "torch"])
def attention(request: pytest.FixtureRequest) -> NativeAttention:
    if request.param == "torch":
        return cast(NativeAttention, TorchAttention())
    return or_skip(native_attention(threads=2))


@pytest.fixture(scope="module", params=[*BACKBONES, "dinov2, fused"])
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    """A backbone's graph and how many attentions of it the kernels can compute."""
    name, _, fused = request.param.partition(", ")
    kind, config, count = BACKBONES[name]
    backbone, generator = kind(config).eval(), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    folder = tmp_path_factory.mktemp("graph")
    export_graph(backbone_spec(backbone), folder)
    path = folder / "backbone.onnx"
    if fused:
        model = onnx_ir.load(path)
        ranges = {str(value.name): 10.0 for node in model.graph for value in node.outputs}
        assert fuse_attention(model, ranges) == count
        path = folder / "fused.onnx"
        onnx_ir.save(model, path)
    return path, count


def read(path: Path) -> Any:
    return OpenVinoBackend()._core.read_model(str(path))


def nodes_of(graph: Any, attention: NativeAttention) -> NativeNodes:
    """Leave the attention of a graph to the kernels."""
    nodes = NativeNodes()
    use_native_attention(graph, attention, nodes, min_tokens=1)
    return nodes


def compiled(graph: Any) -> Any:
    settings = {"INFERENCE_PRECISION_HINT": "f32", "ENABLE_CPU_PINNING": False}
    return OpenVinoBackend()._core.compile_model(graph, "CPU", settings)


def pixels_for(model: Any, images: int) -> np.ndarray[Any, Any]:
    sizes = [size.get_length() for size in list(model.input(0).get_partial_shape())[1:]]
    return np.random.default_rng(0).integers(0, 256, (images, *sizes), dtype=np.uint8)


def tokens_of(model: Any, pixels: np.ndarray[Any, Any]) -> Tensor:
    return torch.from_numpy(model(pixels)[model.output("tokens")])


def test_the_kernels_compute_what_openvino_does(exported: tuple[Path, int], attention: NativeAttention) -> None:
    path, count = exported
    graph = read(path)
    nodes = nodes_of(graph, attention)
    assert len(nodes) == count
    model, plain = compiled(graph), compiled(read(path))
    nodes.complete()
    made = len(nodes)
    for images in (1, 3):
        pixels = pixels_for(plain, images)
        theirs, ours = tokens_of(plain, pixels), tokens_of(model, pixels)
        assert torch.cosine_similarity(theirs, ours, dim=-1).min() > MIN_COSINE
        assert torch.equal(theirs, ours) == (count == 0)
    assert len(nodes) == made, "running a graph must not make nodes of it"


def test_attention_with_a_mask_is_left_to_openvino(tmp_path: Path, demo_bundle: Path) -> None:
    kernels = cast(NativeAttention, TorchAttention())
    config = Dinov2Config(128, 2, num_heads=2, num_registers=4, image_size=56, attention_heads=2)
    export_graph(reencoder_spec(Dinov2Backbone(config).eval()), tmp_path)
    assert len(nodes_of(read(tmp_path / "reencoder.onnx"), kernels)) == 0
    assert len(nodes_of(read(demo_bundle / "decoder.onnx"), kernels)) == 0


def test_a_graph_is_freed_with_its_nodes(tmp_path: Path) -> None:
    kernels = TorchAttention()
    backbone = Dinov2Backbone(Dinov2Config(128, 2, num_heads=2, num_registers=4, image_size=56, attention_heads=2))
    export_graph(backbone_spec(backbone.eval()), tmp_path)
    graph = read(tmp_path / "backbone.onnx")
    nodes = nodes_of(graph, cast(NativeAttention, kernels))
    model = compiled(graph)
    nodes.complete()
    tokens_of(model, pixels_for(model, 1))
    freed = [weakref.ref(node) for node in nodes._kept]
    del graph, model, nodes
    gc.collect()
    assert [one() for one in freed] == [None] * len(freed)


@pytest.fixture
def backbone_inputs(demo_bundle: Path) -> dict[str, Tensor]:
    return inputs_of(engine_contract(Bundle(demo_bundle, verify=False).manifest, "backbone"))


@needs_bfloat16
@pytest.mark.parametrize("threads", [1, 2])
def test_a_failure_of_the_kernels_is_one_of_the_backend(
    demo_bundle: Path,
    backbone_inputs: dict[str, Tensor],
    monkeypatch: pytest.MonkeyPatch,
    threads: int,
) -> None:
    def fail(*_: object) -> None:
        raise MemoryError("no memory")

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    kernels = TorchAttention()
    monkeypatch.setattr(attention_nodes, "MIN_TOKENS", 1)
    monkeypatch.setattr(openvino_nodes, "native_attention", lambda _: kernels)
    engine = OpenVinoBackend(threads, "bf16").open(Bundle(demo_bundle, verify=False).engine("backbone"))
    engine.run(backbone_inputs)
    assert len(kernels.shapes) == 7, "a node for each of the blocks"
    with monkeypatch.context() as patch:
        patch.setattr(kernels, "attend", fail)
        with pytest.raises(BackendError, match=r"backbone\.onnx: the native kernels failed: no memory"):
            engine.run(backbone_inputs)
        patch.setattr(kernels, "attend", interrupt)
        with pytest.raises(KeyboardInterrupt):
            engine.run(backbone_inputs)
    engine.run(backbone_inputs)
    engine.close()


FAILING = """
import sys
from runtime.backends import openvino_nodes
from runtime.backends.openvino import OpenVinoBackend
from runtime.backends.openvino_nodes import attention
from runtime.bundle import Bundle
from runtime.bundle.admission import engine_contract
from runtime.errors import BackendError
from tests.robustness.graph_mutants import inputs_of

class Failing:
    def attend(self, *_):
        raise MemoryError("no memory")

backend, bundle = OpenVinoBackend(int(sys.argv[2]), "bf16"), Bundle(sys.argv[1], verify=False)
inputs = inputs_of(engine_contract(bundle.manifest, "backbone"))
attention.MIN_TOKENS = 1
for kernels in (Failing(), None, Failing(), None):
    openvino_nodes.native_attention = lambda _: kernels
    engine = backend.open(bundle.engine("backbone"))
    try:
        engine.run(inputs)
        print("ran")
    except BackendError:
        print("failed")
    engine.close()
    del engine
"""


@needs_bfloat16
@pytest.mark.parametrize("threads", ["1", "2"])
def test_a_failure_leaves_nothing_to_the_graphs_after(demo_bundle: Path, threads: str) -> None:
    """What OpenVINO keeps of a run that failed it would run again for another graph, after the memory is gone."""
    done = run_child(FAILING, demo_bundle, threads)
    assert (done.returncode, done.stdout.split(), done.stderr) == (0, ["failed", "ran"] * 2, "")


ENDING = """
import sys
from threading import Thread
from runtime.backends.openvino import OpenVinoBackend
from runtime.bundle import Bundle
from runtime.bundle.admission import engine_contract
from tests.robustness.graph_mutants import inputs_of
backend = OpenVinoBackend(2, "bf16")
from runtime.backends.openvino_nodes import attention
attention.MIN_TOKENS = 1
bundle = Bundle(sys.argv[1], verify=False)
engines = [backend.open(bundle.engine("backbone"), 2) for _ in range(3)]
inputs = inputs_of(engine_contract(bundle.manifest, "backbone"))
def run():
    for engine in engines:
        engine.run(inputs)
threads = [Thread(target=run) for _ in range(4)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
engines[0].close()
engines[1].circle = engines[1]
del engines[1]
"""


def test_what_openvino_drops_references_to_without_pythons_lock_is_never_freed() -> None:
    """Its last reference would end the process if the object were of a class with more to free."""
    assert sys.getrefcount(base._HANDLE) > 1 << 29


@needs_bfloat16
def test_programs_end_in_peace_whether_engines_were_closed_or_not(demo_bundle: Path) -> None:
    done = run_child(ENDING, demo_bundle)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@needs_bfloat16
def test_engines_in_bfloat16_take_the_kernels_say_so_and_serve_threads(
    demo_bundle: Path, backbone_inputs: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    files = Bundle(demo_bundle, verify=False).engine("backbone")
    exact = OpenVinoBackend(1).open(files)
    assert "native" not in exact.report().provider
    assert "native" not in OpenVinoBackend(1, "bf16").open(files).report().provider, "the demo has few tokens"
    monkeypatch.setattr(attention_nodes, "MIN_TOKENS", 1)
    engine = OpenVinoBackend(2, "bf16").open(files, concurrency=2)
    assert ("attention by the native kernels" in engine.report().provider) == (native_attention(1) is not None)
    with ThreadPoolExecutor(4) as threads:
        encoded = [run["tokens"] for run in threads.map(lambda _: engine.run(backbone_inputs), range(8))]
    expected = exact.run(backbone_inputs)["tokens"]
    for tokens in encoded:
        assert torch.equal(tokens, encoded[0])
        assert torch.cosine_similarity(tokens, expected, dim=-1).mean() > MIN_BFLOAT16_COSINE
