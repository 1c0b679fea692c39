"""What a graph may differ by from its module: rounding, also where the module itself makes much of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from export.graphs.errors import ExportError
from export.graphs.verification import compare

GAIN = 3e3
INPUTS = torch.randn(20000, 64, generator=torch.Generator().manual_seed(0))


class NearlyAllOrNothing(nn.Module):
    """A softmax of numbers so large that float32 decides near ties otherwise than float64."""

    def __init__(self, seed: int = 1) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(64, 64, generator=torch.Generator().manual_seed(seed)))

    def forward(self, x: Tensor) -> Tensor:
        return torch.softmax(x @ self.weight * GAIN, dim=-1)


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    weight = NearlyAllOrNothing().weight.detach().numpy()
    halves = [
        numpy_helper.from_array(np.ascontiguousarray(part), f"w{number}")
        for number, part in enumerate((weight[:32], weight[32:]))
    ]
    ends = [
        numpy_helper.from_array(np.array(part, np.int64), name)
        for name, part in (("start", [0]), ("middle", [32]), ("end", [64]), ("axis", [1]))
    ]
    gain = numpy_helper.from_array(np.array(GAIN, np.float32), "gain")
    nodes = [
        helper.make_node("Slice", ["x", "start", "middle", "axis"], ["a"]),
        helper.make_node("Slice", ["x", "middle", "end", "axis"], ["b"]),
        helper.make_node("MatMul", ["a", "w0"], ["c"]),
        helper.make_node("MatMul", ["b", "w1"], ["d"]),
        helper.make_node("Add", ["c", "d"], ["e"]),
        helper.make_node("Mul", ["e", "gain"], ["f"]),
        helper.make_node("Softmax", ["f"], ["y"], axis=-1),
    ]  # fmt: skip
    made = helper.make_graph(
        nodes,
        "two sums in place of one",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 64])],
        [*halves, *ends, gain],
    )
    onnx.save(helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), tmp_path / "x.onnx")
    return tmp_path / "x.onnx"


def test_rounding_that_the_module_itself_makes_much_of_is_rounding(graph: Path) -> None:
    assert 1e-4 < compare(graph, NearlyAllOrNothing(), [INPUTS]) < 1


def test_other_weights_are_not(graph: Path) -> None:
    with pytest.raises(ExportError, match="output y differs from its module by .*; at most .* is rounding"):
        compare(graph, NearlyAllOrNothing(seed=2), [INPUTS])
