"""Compares a graph with the torch module that it was made from."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir
import torch
from torch import Tensor, nn

from export.graphs.errors import ExportError
from export.graphs.half_precision import emulate_bf16
from export.graphs.weight_compression import round_weights
from runtime.backends.imports import import_onnxruntime
from runtime.bundle import GraphPrecision
from runtime.bundle.graph_io import LOG_PROBS

_MAX_ERROR: dict[GraphPrecision, float] = {
    "fp32": 1e-4,
    "fp16": 0.02,
    "bf16": 0.1,
    "int8": 0.2,
    "int8_weights": 0.2,
    "fp8": 0.5,
}
"""Relative. In float32 another order of sums differs by about 1e-6 a layer, a wrong graph by far more. Outputs differ
by up to 0.001 in float16, 0.02 in bfloat16, 0.06 in int8 (0.1 where attention is all or nothing) and 0.3 in fp8, those
of a wrong graph by about 1."""

_ROUNDING_SPREAD = 3
"""How many times the difference that rounding makes to a module its graph may have: random weights can make a module
that turns rounding into much more, by attention that is all or nothing for example."""
_MOST_ROUNDING = 0.5
"""What no rounding explains more than: a wrong graph differs by about 1."""
_ROUND: dict[GraphPrecision, Callable[[nn.Module], object]] = {
    "fp32": lambda module: module.double(),
    "fp16": lambda module: module.half().float(),
    "bf16": lambda module: module.bfloat16().float(),
    "int8_weights": round_weights,
}
"""What shows the rounding of a precision, of a module in place: weights as they are stored, or for float32 all of it in
float64."""

_MAX_LOG_PROB_ERROR: dict[GraphPrecision, float] = {
    "fp32": 1e-4,
    "fp16": 0.2,
    "bf16": 1.0,
    "int8": 2.0,
    "int8_weights": 2.0,
    "fp8": 2.0,
}
"""Absolute, of the best token. In int8 it is the difference of logits of 100 that are right to 0.02 of that; the
log-probability of any other token of 50,000 is about -10."""


def compare(path: Path, module: nn.Module, *cases: Sequence[Tensor], precision: GraphPrecision = "fp32") -> float:
    """Return the largest difference between a graph's outputs and its module's over some cases of inputs.

    Best log-probabilities are compared absolutely, all else relative to the largest value of the output. Whole numbers,
    the best tokens, are compared in float32 only: in half precision the second best may be the best, and its
    log-probability is as near. bfloat16, which ONNX Runtime does not run on a CPU, is emulated.

    Raises:
        ExportError: the difference is larger than rounding to ``precision`` explains, or whole numbers differ.
    """
    session = _open_session(path, precision)
    largest = 0.0
    for inputs in cases:
        feeds = {
            node.name: value.half().numpy() if node.type == "tensor(float16)" else value.numpy()
            for node, value in zip(session.get_inputs(), inputs, strict=True)
        }
        with torch.inference_mode():
            outputs = module(*inputs)
        expected = (outputs,) if isinstance(outputs, Tensor) else outputs
        results = zip(session.get_outputs(), session.run(None, feeds), expected, strict=True)
        for number, (node, got, want) in enumerate(results):
            if precision != "fp32" and got.dtype.kind == "i":
                continue
            difference = _difference(node.name, got, want.numpy())
            allowed = (_MAX_LOG_PROB_ERROR if node.name == LOG_PROBS else _MAX_ERROR)[precision]
            if precision in _ROUND and allowed < difference:
                rounding = _ROUNDING_SPREAD * _rounding(module, inputs, number, node.name, precision)
                allowed = max(allowed, min(rounding, _MOST_ROUNDING))
            if not difference <= allowed:
                raise ExportError(
                    f"{path.name}: output {node.name} differs from its module by {difference:.1e}; "
                    f"at most {allowed:.0e} is rounding"
                )
            largest = max(largest, difference)
    return largest


def _rounding(module: nn.Module, inputs: Sequence[Tensor], number: int, name: str, precision: GraphPrecision) -> float:
    """Return the difference that a precision makes to one of a module's outputs, as `compare` measures differences."""
    changed, inputs_of_changed = copy.deepcopy(module), list(inputs)
    _ROUND[precision](changed)
    if precision == "fp32":
        inputs_of_changed = [value.double() if value.is_floating_point() else value for value in inputs]
    with torch.inference_mode():
        outputs = [module(*inputs), changed(*inputs_of_changed)]
    got, want = ((one,) if isinstance(one, Tensor) else one for one in outputs)
    return _difference(name, got[number].numpy(), want[number].numpy())


def _open_session(path: Path, precision: GraphPrecision) -> Any:
    onnxruntime = import_onnxruntime()
    if precision != "bf16":
        return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL  # it would undo the rounding
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        copy = Path(folder) / path.name
        onnx_ir.save(emulate_bf16(onnx_ir.load(path)), copy, external_data=f"{copy.name}.data")
        return onnxruntime.InferenceSession(str(copy), options, providers=["CPUExecutionProvider"])


def _difference(name: str, got: npt.NDArray[Any], want: npt.NDArray[Any]) -> float:
    if want.dtype.kind == "i":
        return float((got != want).any())
    # A log-probability near 0 is the difference of two large numbers; its size says nothing of its rounding. That of
    # the least likely of all does.
    largest_value = 1.0 if name == LOG_PROBS else np.abs(want).max()
    return float(np.abs(got - want).max() / largest_value)
