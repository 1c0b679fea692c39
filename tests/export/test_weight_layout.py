"""How the weights of products are stored for GPUs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir
import torch
from onnx import TensorProto, helper, numpy_helper

from export.graphs.specs import decap_specs
from export.graphs.tracing import trace
from export.graphs.weight_layout import is_transposed, transpose_weights
from export.models.decap_decoder import DecapConfig, DecapStep
from runtime.backends.onnxruntime_cpu import OrtBackend
from runtime.bundle import EngineFiles


def test_weights_of_gemm_are_stored_by_output_and_the_result_is_the_same(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    weights = {name: generator.standard_normal((3, 5), np.float32) for name in ("w", "shared")}
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", 3])
    results = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["rows", 5]) for name in ("y", "z")]
    looked_up = helper.make_tensor_value_info("row", TensorProto.FLOAT, [5])
    nodes = [
        helper.make_node("Gemm", ["x", "w", "bias"], ["y"]),
        helper.make_node("Gemm", ["x", "shared"], ["z"]),
        helper.make_node("Gather", ["shared", "index"], ["row"]),
    ]
    constants = {**weights, "bias": np.arange(5, dtype=np.float32), "index": np.array(1)}
    initializers = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    graph = helper.make_graph(nodes, "graph", [x], [*results, looked_up], initializers)
    model = onnx_ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10))
    transpose_weights(model)
    onnx_ir.save(model, tmp_path / "graph.onnx")
    onnx.checker.check_model(str(tmp_path / "graph.onnx"), full_check=True)
    assert [is_transposed(node) for node in model.graph] == [True, False, False], "the lookup needs its rows"
    values = torch.tensor(generator.standard_normal((2, 3), np.float32))
    got = OrtBackend().open(EngineFiles(tmp_path / "graph.onnx")).run({"x": values})
    torch.testing.assert_close(got["y"], values @ torch.tensor(weights["w"]) + torch.arange(5))
    torch.testing.assert_close(got["z"], values @ torch.tensor(weights["shared"]))
    torch.testing.assert_close(got["row"], torch.tensor(weights["shared"][1]))


def test_the_vocabulary_of_a_decoder_for_gpus_is_stored_once_and_in_a_multiple_of_8_rows() -> None:
    config = DecapConfig(prefix_width=8, embed_dim=8, num_layers=1, vocab_size=30, text_vocab_size=28)
    decoder = DecapStep(config).eval()
    decoder.prepare_for("cuda")
    greedy, _ = decap_specs(decoder)
    model = trace(greedy)
    transpose_weights(model)
    of_words = [value for value in model.graph.initializers.values() if value.name.endswith("wte.weight")]
    (vocabulary,) = of_words
    assert list(vocabulary.shape) == [32, 8]
    assert sorted(use.node.op_type for use in vocabulary.uses()) == ["Gather", "Gemm"]
