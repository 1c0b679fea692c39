"""One node for kernels' nodes that follow one another: which, the same numbers, runs side by side, memory."""

from __future__ import annotations

import gc
import random
import weakref
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from threading import Barrier
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pytest
import torch

from export.graphs.exporter import export_graph
from export.graphs.specs import backbone_spec
from export.models.dinotxt import DinotxtBackbone, VisionHead, VisionHeadConfig
from export.models.dinov2 import Dinov2Backbone, Dinov2Config
from runtime.backends.native_attention import NativeAttention, native_attention
from runtime.backends.native_linear import NativeLayer, NativeLinear, native_linear
from runtime.backends.openvino import OpenVinoBackend
from runtime.bundle import EngineFiles
from runtime.errors import BackendError
from tests.backends.native import or_skip
from tests.exported_forms import randomized

pytest.importorskip("openvino", reason="needs pip install 'patchcaption[openvino]'")

from runtime.backends import openvino_nodes  # imports OpenVINO
from runtime.backends.openvino_nodes import attention as attention_nodes
from runtime.backends.openvino_nodes import chain as chains
from runtime.backends.openvino_nodes import linear as linear_nodes
from runtime.backends.openvino_nodes.attention import AttentionNode, use_native_attention
from runtime.backends.openvino_nodes.base import NativeNodes
from runtime.backends.openvino_nodes.chain import Chain, ChainNode, chain_nodes
from runtime.backends.openvino_nodes.linear import LinearNode, use_native_linear
from tests.backends.openvino_nodes.conftest import TorchLinear
from tests.backends.openvino_nodes.test_attention import TorchAttention
from tests.backends.openvino_nodes.test_linear import (
    BACKBONES,
    EXTRA,
    WIDTH,
    graph_of,
    needs_bfloat16,
    node,
    read,
    rounded,
)

Arrays = dict[str, npt.NDArray[Any]]
_DINOV2 = Dinov2Config(128, 2, num_heads=2, num_registers=4, image_size=56, attention_heads=2)
FORMS = {
    **BACKBONES,
    "dinotxt": DinotxtBackbone(Dinov2Backbone(_DINOV2), VisionHead(VisionHeadConfig(128, 1, 2, 128))),
}
CHAINS = {
    # Each block's queries, keys and values, attention, its output and MLP.
    "dinov2": [8],
    # Each attention reads queries and keys that OpenVINO turned.
    "dinov3": [3],
    # OpenVINO's GELU lies between the products of an MLP.
    "clip": [4],
    "siglip2": [4, 3, 2],
    # The last block and the head, whose attention and MLP OpenVINO computes in part.
    "dinotxt": [8, 5],
}
"""How many nodes each chain of a graph in bfloat16 executes."""


class ChainedModel:
    """A compiled graph whose attention and products are left to the kernels, in chains or not."""

    def __init__(
        self,
        path: Path,
        linear: NativeLinear,
        attention: NativeAttention | None = None,
        number_format: str = "bf16",
        chained: bool = True,
        streams: int = 1,
    ) -> None:
        graph, self.nodes = read(path), NativeNodes()
        if attention is not None:
            use_native_attention(graph, attention, self.nodes, min_tokens=1)
        use_native_linear(graph, linear, self.nodes, number_format, min_tokens=1)
        self.nodes.join()
        if chained:
            chain_nodes(graph, self.nodes)
        graph.validate_nodes_and_infer_types()
        self.chains: list[Chain] = [one._chain for one in self.nodes if isinstance(one, ChainNode)]
        settings = {"INFERENCE_PRECISION_HINT": "f32", "ENABLE_CPU_PINNING": False, "NUM_STREAMS": str(streams)}
        self.compiled = OpenVinoBackend(2)._core.compile_model(graph, "CPU", settings)
        self.nodes.complete()
        self.request = self.compiled.create_infer_request()

    @property
    def sizes(self) -> list[int]:
        return [len(chain.members) for chain in self.chains]

    def run(self, inputs: npt.NDArray[Any], request: Any | None = None) -> Arrays:
        results = (request or self.request).infer([inputs], share_outputs=False)
        assert self.nodes.failures == 0, self.nodes.last_failure
        return {port.get_any_name(): results[port] for port in self.compiled.outputs}


def pixels_for(model: ChainedModel, images: int, seed: int = 0) -> npt.NDArray[np.uint8]:
    sizes = [size.get_length() for size in list(model.compiled.input(0).get_partial_shape())[1:]]
    return np.random.default_rng(seed).integers(0, 256, (images, *sizes), dtype=np.uint8)


def assert_identical(ours: Arrays, theirs: Arrays) -> None:
    assert ours.keys() == theirs.keys()
    for name, array in ours.items():
        assert array.shape == theirs[name].shape
        assert array.tobytes() == theirs[name].tobytes(), name


def torch_kernels() -> tuple[NativeLinear, NativeAttention]:
    return cast(NativeLinear, TorchLinear()), cast(NativeAttention, TorchAttention())


@pytest.fixture(params=["kernels", "torch"])
def kernels(request: pytest.FixtureRequest) -> tuple[NativeLinear, NativeAttention]:
    if request.param == "torch":
        return torch_kernels()
    return or_skip(native_linear(threads=2)), or_skip(native_attention(threads=2))


@pytest.fixture(scope="module", params=FORMS)
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """A backbone's name and its graph in 8 bits."""
    return request.param, export(request.param, tmp_path_factory.mktemp("graph"))


@pytest.fixture(scope="module")
def blocks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A graph of two blocks, which are one chain."""
    return export("dinov2", tmp_path_factory.mktemp("graph"))


def export(name: str, folder: Path) -> Path:
    backbone = randomized(FORMS[name])
    pixels = torch.randint(0, 256, (1, *[backbone.image_size] * 2, 3), dtype=torch.uint8)
    export_graph(backbone_spec(backbone, pixels), folder, "int8")
    return folder / "backbone.onnx"


@pytest.mark.parametrize("number_format", ["f32", "bf16"])
def test_a_chain_computes_what_its_nodes_do_to_the_last_bit(
    exported: tuple[str, Path], kernels: tuple[NativeLinear, NativeAttention], number_format: str
) -> None:
    name, path = exported
    chained = ChainedModel(path, *kernels, number_format)
    separate = ChainedModel(path, *kernels, number_format, chained=False)
    assert not separate.chains
    if number_format == "bf16":
        assert chained.sizes == CHAINS[name]
    for kind in (LinearNode, AttentionNode):
        assert chained.nodes.count(kind) > 0, "what engines report"
    for images in (1, 3, 2, 2, 1):
        pixels = pixels_for(chained, images, seed=images)
        assert_identical(chained.run(pixels), separate.run(pixels))


def product(source: str, target: str, residual: str | None = None) -> list[Any]:
    """Nodes of one product with a residual, by default its source."""
    matmul = node("MatMul", f"{source}.rounded", "weight", f"{target}.product")
    return [*rounded(source), matmul, node("Add", f"{target}.product", residual or source, target)]


IN_A_ROW = [*product("x", "a"), *product("a", "b"), *product("b", "y")]
GRAPHS: dict[str, tuple[list[Any], list[str], list[int]]] = {
    "one node": (product("x", "y"), ["y"], []),
    "a row": (IN_A_ROW, ["y"], [3]),
    "an operator between": (
        [*product("x", "a"), *product("a", "b"), node("Abs", "b", "c"), *product("c", "d"), *product("d", "y")],
        ["y"],
        [2, 2],
    ),
    "an operator before the last": (
        [*product("x", "a"), *product("a", "b"), node("Abs", "b", "c"), *product("c", "y")],
        ["y"],
        [2],
    ),
    "operators between all": (
        [*product("x", "a"), node("Abs", "a", "b"), *product("b", "c"), node("Abs", "c", "d"), *product("d", "y")],
        ["y"],
        [],
    ),
    "an operator beside": (
        [*product("x", "a"), node("Abs", "a", "c"), *product("a", "b"), *product("b", "y", residual="c")],
        ["y"],
        [2],
    ),
    "values that others read": (
        [*IN_A_ROW, node("Abs", "a", "first"), node("Add", "a", "x", "second"), node("Neg", "b", "third")],
        ["third", "y", "first", "second"],
        [3],
    ),
    "two ends": (
        [*product("x", "a"), *product("a", "y"), node("MatMul", "a.rounded", "weight", "other")],
        ["y", "other"],
        [3],
    ),
    "two beginnings": (
        [*product("x", "a"), node("Abs", "x", "c"), *product("c", "b"), *product("b", "y", residual="a")],
        ["y"],
        [3],
    ),
    "an end that reads an operator behind another": (
        [
            *product("x", "a"),
            *product("a", "b"),
            node("Abs", "a", "c"),
            *product("c", "d"),
            *product("b", "y"),
            *product("d", "other"),
        ],
        ["y", "other"],
        [3, 2],
    ),
}
"""Nodes, outputs, and how many nodes each chain has."""


@pytest.mark.parametrize("number_format", ["f32", "bf16"])
@pytest.mark.parametrize("name", GRAPHS)
def test_chains_are_cut_where_openvino_stands_between(name: str, number_format: str, tmp_path: Path) -> None:
    nodes, outputs, sizes = GRAPHS[name]
    path = graph_of(tmp_path, nodes, EXTRA, outputs)
    linear, _ = torch_kernels()
    chained = ChainedModel(path, linear, number_format=number_format)
    separate = ChainedModel(path, linear, number_format=number_format, chained=False)
    assert chained.sizes == sizes
    for seed in range(3):
        x = np.random.default_rng(seed).normal(size=(1, 8, WIDTH)).astype(np.float32)
        assert_identical(chained.run(x), separate.run(x))


class MeetingLinear(TorchLinear):
    """Kernels that go on when as many runs call them as meet."""

    def __init__(self) -> None:
        super().__init__()
        self.meeting: Barrier | None = None

    def run(self, layers: Sequence[NativeLayer], *rest: Any) -> None:
        if self.meeting is not None:
            self.meeting.wait(60)
        super().run(layers, *rest)
        if self.meeting is not None:
            self.meeting.wait(60)


def test_runs_side_by_side_do_not_share_memory(blocks: Path) -> None:
    linear = MeetingLinear()
    _, attention = torch_kernels()
    model = ChainedModel(blocks, cast(NativeLinear, linear), attention, streams=2)
    inputs = [pixels_for(model, 1, seed) for seed in range(16)]
    expected = [model.run(pixels) for pixels in inputs]
    requests: SimpleQueue[Any] = SimpleQueue()
    for _ in range(2):
        requests.put(model.compiled.create_infer_request())

    def run(pixels: npt.NDArray[Any]) -> Arrays:
        request = requests.get()
        try:
            return model.run(pixels, request)
        finally:
            requests.put(request)

    linear.meeting = Barrier(2)  # each product of one run is computed while one of the other is
    with ThreadPoolExecutor(16) as threads:
        for ours, theirs in zip(threads.map(run, inputs), expected, strict=True):
            assert_identical(ours, theirs)
    (chain,) = model.chains
    assert len(chain._bindings) == 2


class FailingLinear(TorchLinear):
    """Kernels that fail at one of their runs."""

    failing: int | None = None

    def run(self, layers: Sequence[NativeLayer], *rest: Any) -> None:
        if len(self.runs) == self.failing:
            raise MemoryError("no memory")
        super().run(layers, *rest)


def test_a_failure_in_the_middle_ends_the_run_and_leaves_the_chain_as_it_was(blocks: Path) -> None:
    linear = FailingLinear()
    _, attention = torch_kernels()
    model = ChainedModel(blocks, cast(NativeLinear, linear), attention)
    pixels = pixels_for(model, 1)
    expected, count = model.run(pixels), len(linear.runs)
    linear.failing = count + 3
    model.request.infer([pixels])
    assert model.nodes.failures == 1
    assert str(model.nodes.last_failure) == "no memory"
    assert len(linear.runs) == linear.failing, "what follows is not computed"
    linear.failing, model.nodes.failures = None, 0
    assert_identical(model.run(pixels), expected)


@needs_bfloat16
def test_engines_say_what_failed_in_a_chain(blocks: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    linear = FailingLinear()
    for kind in (linear_nodes, attention_nodes):
        monkeypatch.setattr(kind, "MIN_TOKENS", 1)
    monkeypatch.setattr(openvino_nodes, "native_attention", lambda _: TorchAttention())
    monkeypatch.setattr(openvino_nodes, "native_linear", lambda _: linear)
    engine = OpenVinoBackend(1, "bf16").open(EngineFiles(blocks))
    inputs = {"pixel_values": torch.zeros(1, 56, 56, 3, dtype=torch.uint8)}
    expected = engine.run(inputs)["tokens"]
    linear.failing = len(linear.runs) + 1
    with pytest.raises(BackendError, match=r"backbone\.onnx: the native kernels failed: no memory"):
        engine.run(inputs)
    linear.failing = None
    assert torch.equal(engine.run(inputs)["tokens"], expected)
    engine.close()


def test_memory_stays_from_run_to_run_and_that_of_a_huge_batch_does_not(blocks: Path) -> None:
    model = ChainedModel(blocks, *torch_kernels())
    (chain,) = model.chains

    def after(images: int) -> tuple[int, int]:
        model.run(pixels_for(model, images))
        (binding,) = chain._bindings
        return binding.memory.ctypes.data, binding.memory.nbytes

    tokens, width = 21, 128
    for images in (16, 1, 2):
        address, size = after(images)
        needed = 2 * images * tokens * width * (3 + 1 + 1)  # queries, keys and values, and two values of the width
        assert size <= chains._MOST_TIMES_TOO_LARGE * (needed + 2 * chains._PAGE)
    assert after(1) == after(2) == (address, size)
    assert after(100)[1] > size


def test_calls_are_prepared_once_for_tensors_that_stay(blocks: Path) -> None:
    model = ChainedModel(blocks, *torch_kernels())
    (chain,) = model.chains
    first, second = pixels_for(model, 1, seed=0), pixels_for(model, 1, seed=1)
    for _ in range(3):
        model.run(first)
    calls = chain._bindings[0].calls
    assert len(calls) == len(chain.members)
    model.run(second)
    assert chain._bindings[0].calls is calls


def test_a_chain_is_freed_with_its_nodes(blocks: Path) -> None:
    model = ChainedModel(blocks, *torch_kernels())
    model.run(pixels_for(model, 2))
    kept = [*model.chains, *model.nodes, model.chains[0]._bindings[0].memory]
    freed = [weakref.ref(one) for one in kept]
    del kept, model
    gc.collect()
    assert [one() for one in freed] == [None] * len(freed)


def test_values_that_are_read_yet_are_not_overwritten() -> None:
    choose = random.Random(0)
    for _ in range(200):
        inputs, count = choose.randint(1, 3), choose.randint(1, 20)
        members = [
            chains._Member(cast(Any, None), tuple(choose.choices(range(made), k=choose.randint(1, 3))), made)
            for made in range(inputs, inputs + count)
        ]
        sizes = {member.makes: choose.randint(0, 5000) for member in members if choose.random() < 0.8}
        starts, size = chains._layout(members, sizes)
        assert starts.keys() == sizes.keys()
        last = {number: member.makes for member in members for number in member.reads}
        for number, start in starts.items():
            assert start % chains._ALIGNMENT == 0
            assert start + sizes[number] <= size
            for other in (other for other in starts if number < other <= last.get(number, 0)):
                assert start + sizes[number] <= starts[other] or starts[other] + sizes[other] <= start


def test_memory_does_not_grow_with_the_depth() -> None:
    def size_of(blocks: int) -> int:
        members, sizes, stream = [], {}, 0
        for block in range(blocks):
            first = 4 * block + 1
            reads = ((stream,), (first,), (first + 1, stream), (first + 2,))
            members += [chains._Member(cast(Any, None), read, first + place) for place, read in enumerate(reads)]
            sizes.update({first: 3 << 20, first + 1: 1 << 20, first + 2: 1 << 20, first + 3: 1 << 20})
            stream = first + 3
        return chains._layout(members, sizes)[1]

    assert size_of(12) == size_of(2) <= (5 << 20) + 3 * chains._PAGE
