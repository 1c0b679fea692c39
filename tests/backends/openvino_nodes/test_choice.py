"""The choice of words that OpenVINO leaves to the native kernels."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import cast

import onnx
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from export.graphs.exporter import export_graph
from export.graphs.specs import decap_specs
from export.models.decap_decoder import DecapConfig, DecapStep
from runtime.backends.native_linear import NativeLinear
from runtime.backends.openvino import OpenVinoBackend
from runtime.bundle import EngineFiles
from tests.exported_forms import randomized

pytest.importorskip("openvino", reason="needs pip install 'patchcaption[openvino]'")

from runtime.backends import openvino_nodes  # imports OpenVINO
from runtime.backends.openvino_nodes.base import NativeNodes
from runtime.backends.openvino_nodes.choice import use_native_choice
from tests.backends.openvino_nodes.conftest import TorchLinear

Exported = Callable[..., Path]

SIZES = {"blocks": (3001, 2900), "one block": (301, 13), "as many as candidates": (70, 8)}
"""The words, and those that have text."""


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """Return the folder of the graphs of a decoder of some words, of which some have text, with samples or without."""

    @cache
    def export(words: int, with_text: int, has_samples: bool = True) -> Path:
        folder = tmp_path_factory.mktemp("graphs")
        config = DecapConfig(prefix_width=64, embed_dim=64, num_layers=1, vocab_size=words, text_vocab_size=with_text)
        decoder = randomized(DecapStep(config))
        decoder.prepare_for("cpu", rounds_weights=True)
        vectors = F.normalize(torch.randn(4, 64, generator=torch.Generator().manual_seed(2)))
        for spec in decap_specs(decoder, vectors if has_samples else None):
            export_graph(spec, folder, "int8_weights")
        return folder

    return export


def count_nodes(path: Path) -> int:
    nodes = NativeNodes()
    use_native_choice(OpenVinoBackend()._core.read_model(str(path)), cast(NativeLinear, TorchLinear()), nodes)
    return len(nodes)


def step_inputs(path: Path, rows: int) -> dict[str, Tensor]:
    generator, inputs = torch.Generator().manual_seed(rows), {}
    for value in onnx.load(path, load_external_data=False).graph.input:
        sizes = [size.dim_value or rows for size in value.type.tensor_type.shape.dim]
        inputs[value.name] = torch.randn(sizes, generator=generator)
    return {**inputs, "input_ids": torch.arange(rows) % 5, "position": torch.tensor([2])}


@pytest.mark.parametrize("name", SIZES)
def test_the_same_words_are_chosen(
    name: str, linear: NativeLinear, exported: Exported, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = exported(*SIZES[name]) / "decoder.onnx"
    files = EngineFiles(path, precision="int8_weights")
    engines = {}
    for kernels in (None, linear):
        monkeypatch.setattr(openvino_nodes, "native_linear", lambda _, kernels=kernels: kernels)
        engines[kernels] = OpenVinoBackend(2).open(files)
    assert engines[None].report().provider == "CPU in f32"
    assert engines[linear].report().provider == "CPU in f32, the choice of words by the native kernels"
    for rows in (1, 5, 40):
        inputs = step_inputs(path, rows)
        theirs, ours = engines[None].run(inputs), engines[linear].run(inputs)
        assert torch.equal(ours["next_token_ids"], theirs["next_token_ids"])
        torch.testing.assert_close(ours["log_probs"], theirs["log_probs"], rtol=0, atol=2e-3)


def test_only_a_choice_by_logits_in_8_bits_is_taken(exported: Exported) -> None:
    assert count_nodes(exported(301, 13) / "decoder.onnx") == 1
    assert count_nodes(exported(301, 13) / "beam_decoder.onnx") == 0, "beams need all logits"
    assert count_nodes(exported(64, 5) / "decoder.onnx") == 0, "fewer words than candidates"
    assert count_nodes(exported(64, 5, has_samples=False) / "decoder.onnx") == 0, "activations in float32"


def test_logits_that_something_else_reads_stay(exported: Exported, tmp_path: Path) -> None:
    folder = exported(301, 13)
    model = onnx.load(folder / "decoder.onnx")
    logits = next(node.input[0] for node in model.graph.node if node.op_type == "GatherElements")
    model.graph.output.append(onnx.helper.make_tensor_value_info(logits, onnx.TensorProto.FLOAT, None))
    onnx.save(model, tmp_path / "other.onnx")
    assert count_nodes(tmp_path / "other.onnx") == 0
