"""Engines that do not keep the contract of their graphs: one clear error, when they are opened or when they run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor

from runtime import BundleError, Captioner, PatchcaptionError, WholeImage
from runtime.backends import open_backend
from runtime.backends.openvino import _reason
from runtime.bundle import Bundle, DecoderConfig, EngineName, GraphContract
from runtime.decoding.batches import decode_in_batches
from tests.conftest import SAMPLE
from tests.robustness.test_security import with_matching_manifest

BACKENDS = ("cpu", "openvino")
SCENE = SAMPLE / "scene.jpg"
Change = Callable[[onnx.GraphProto], None]
Make = Callable[[onnx.GraphProto, str, str], None]
"""Adds what computes an output from the one before."""


@pytest.fixture(autouse=True)
def any_graph_is_admitted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Engines keep to the contract by themselves, whatever a graph passed before."""

    def admit(self: Bundle, name: EngineName) -> None:
        file = self.manifest.engines[name].file
        self._weight_files[file] = ["decoder.onnx.data" if name == "beam_decoder" else f"{file}.data"]

    monkeypatch.setattr(Bundle, "_admit_graph", admit)


def rewrite(folder: Path, name: str, change: Change) -> Path:
    """Change a graph of a bundle, whose manifest then matches it."""
    graph = onnx.load(folder / name, load_external_data=False)
    change(graph.graph)
    (folder / name).write_bytes(graph.SerializeToString())
    return with_matching_manifest(folder)


def output_from(make: Make, index: int = 0, axes: list[int | str] | None = None) -> Change:
    """Return a change that computes an output of what it was before, and declares it with other axes."""

    def change(graph: onnx.GraphProto) -> None:
        output = graph.output[index]
        for node in graph.node:
            node.output[:] = [f"{one} before" if one == output.name else one for one in node.output]
            node.input[:] = [f"{one} before" if one == output.name else one for one in node.input]
        make(graph, f"{output.name} before", output.name)
        if axes is not None:
            kind = output.type.tensor_type.elem_type
            output.CopyFrom(helper.make_tensor_value_info(output.name, kind, axes))

    return change


def doubled(graph: onnx.GraphProto, source: str, target: str) -> None:
    graph.node.append(helper.make_node("Concat", [source, source], [target], axis=0))


def without_last_axis(graph: onnx.GraphProto, source: str, target: str) -> None:
    graph.node.append(helper.make_node("ReduceMax", [source], [target], keepdims=0))
    graph.node[-1].attribute.append(helper.make_attribute("noop_with_empty_axes", 0))


def as_double(graph: onnx.GraphProto, source: str, target: str) -> None:
    graph.node.append(helper.make_node("Cast", [source], [target], to=TensorProto.DOUBLE))
    graph.output[0].type.tensor_type.elem_type = TensorProto.DOUBLE


def plus(number: int) -> Make:
    def make(graph: onnx.GraphProto, source: str, target: str) -> None:
        graph.initializer.append(numpy_helper.from_array(np.array(number, np.int64), "so much"))
        graph.node.append(helper.make_node("Add", [source, "so much"], [target]))

    return make


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        (
            "backbone.onnx",
            output_from(doubled, axes=["any", 261, 192]),
            r"backbone.onnx: output tokens: expected float32 \(images, 261, 192\), got float32 \(2, 261, 192\)",
        ),
        (
            "backbone.onnx",
            output_from(as_double),
            r"backbone.onnx: output tokens: expected float32 .*, got another type \(",
        ),
        (
            "backbone.onnx",
            output_from(without_last_axis, axes=[]),
            r"backbone.onnx: output tokens: expected float32 .*, got float32 \(\)",
        ),
        (
            "decoder.onnx",
            output_from(doubled, axes=["any"]),
            r"decoder.onnx: output next_token_ids: expected int64 \(regions\), got int64 \(2,\)",
        ),
        ("decoder.onnx", output_from(plus(10**6)), "decoder: expected tokens from 0 to 169, got 1000|cannot run it"),
        ("decoder.onnx", output_from(plus(-(10**6))), "decoder: expected tokens from 0 to 169, got -99|cannot run it"),
    ],
)
def test_outputs_of_another_shape_type_or_range_are_named(
    bundle_copy: Callable[[], Path], backend: str, name: str, change: Change, message: str
) -> None:
    folder = rewrite(bundle_copy(), name, change)
    with pytest.raises(PatchcaptionError, match=message) as raised, Captioner.load(folder, backend) as captioner:
        captioner.caption(SCENE, [WholeImage()])
    assert "\n" not in str(raised.value)


def renamed_output(graph: onnx.GraphProto) -> None:
    for node in graph.node:
        node.output[:] = ["vectors" if one == "tokens" else one for one in node.output]
        node.input[:] = ["vectors" if one == "tokens" else one for one in node.input]
    graph.output[0].name = "vectors"


def one_more_input(graph: onnx.GraphProto) -> None:
    graph.input.append(helper.make_tensor_value_info("more", TensorProto.FLOAT, [1]))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("change", "message"),
    [(renamed_output, "backbone.onnx: output tokens: missing"), (one_more_input, "backbone.onnx: input more: this")],
)
def test_names_that_are_missing_or_unknown_are_said(
    bundle_copy: Callable[[], Path], backend: str, change: Change, message: str
) -> None:
    with pytest.raises(BundleError, match=message):
        open_backend(backend).open(Bundle(rewrite(bundle_copy(), "backbone.onnx", change)).engine("backbone"))


def test_the_vocabulary_of_beam_search_may_be_smaller_but_not_larger(demo_bundle: Path) -> None:
    manifest = Bundle(demo_bundle, verify=False).manifest
    contract = GraphContract.of("beam_decoder", manifest)
    inputs = {
        one.name: torch.zeros([axis if isinstance(axis, int) else 3 for axis in one.axes]) for one in contract.inputs
    }
    outputs = {
        one.name: torch.zeros([axis if isinstance(axis, int) else 3 for axis in one.axes], dtype=one.dtype)
        for one in contract.outputs
    }
    for words, is_taken in ((1, True), (170, True), (0, False), (171, False)):
        found = outputs | {"all_log_probs": torch.zeros(3, words)}
        if is_taken:
            contract.check_outputs(Path("graph"), inputs, found)
            continue
        with pytest.raises(BundleError, match="graph: output all_log_probs: expected float32"):
            contract.check_outputs(Path("graph"), inputs, found)


@pytest.mark.parametrize(
    ("token", "log_prob", "message"),
    [
        (170, -1.0, "decoder: expected tokens from 0 to 169, got 170"),
        (-1, -1.0, "decoder: expected tokens from 0 to 169, got -1"),
        (3, 700.0, "decoder: expected log-probabilities of at most 0, got 700.0"),
        (3, float("inf"), "decoder: expected log-probabilities of at most 0, got inf"),
        (3, float("nan"), "vectors: row 1: expected finite numbers: its caption has the score nan"),
    ],
)
def test_what_a_decoder_chooses_is_in_its_range(demo_bundle: Path, token: int, log_prob: float, message: str) -> None:
    config: DecoderConfig = Bundle(demo_bundle, verify=False).manifest.decoder

    def decode_batch(batch: Tensor) -> tuple[Tensor, Tensor]:
        ids, sums = torch.zeros(len(batch), 30, dtype=torch.int64), torch.full((len(batch),), -2.0)
        ids[1, 5], sums[1] = token, log_prob
        return ids, sums

    with pytest.raises(PatchcaptionError, match=message):
        decode_in_batches(decode_batch, torch.eye(3).flip(1), config)


def test_the_messages_of_openvino_begin_with_what_is_wrong() -> None:
    text = (
        "Exception from src/inference/src/cpp/core.cpp:132:\nException from src/inference/src/dev/plugin.cpp:53:\n"
        "Check 'false' failed at src/frontends/common/src/frontend.cpp:54:\nConverting input model\nUnknown one\n\n"
    )
    assert _reason(RuntimeError(text)) == "Converting input model Unknown one"
    assert _reason(RuntimeError("Exception from core.cpp:132:\n")) == "RuntimeError"


def test_a_graph_that_openvino_does_not_take_is_said_with_the_reason(bundle_copy: Callable[[], Path]) -> None:
    def break_it(graph: onnx.GraphProto) -> None:
        graph.node[0].op_type = "NoSuchOperator"

    folder = rewrite(bundle_copy(), "backbone.onnx", break_it)
    with pytest.raises(PatchcaptionError, match="backbone.onnx: OpenVINO cannot load it: .*NoSuchOperator"):
        Captioner.load(folder, "openvino")
