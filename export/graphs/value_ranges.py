"""Measures the largest values that a graph's tensors take on some inputs: what float16, or 8 bits, must hold."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir

from export.graphs.constants import ConstantPool
from runtime.backends.imports import import_onnxruntime

_OUTPUT_PREFIX = "largest."


def measure_ranges(model: onnx_ir.Model, feeds: Iterable[Mapping[str, npt.NDArray[Any]]]) -> dict[str, float]:
    """Return the largest absolute value of each float32 tensor that a graph computes or is given, by name.

    Args:
        feeds: inputs to run it on.
    """
    copy = model.clone()
    names = [str(value.name) for value in _float_tensors(copy.graph)]
    return {name: float(value) for name, value in _largest(copy, names, feeds, by_column=False).items()}


def measure_columns(
    model: onnx_ir.Model, names: Iterable[str], feeds: Iterable[Mapping[str, npt.NDArray[Any]]]
) -> dict[str, npt.NDArray[np.float32]]:
    """Return the largest absolute value of each column (K,) of some of a graph's tensors (..., K), by name.

    Args:
        feeds: inputs to run it on.
    """
    return _largest(model.clone(), list(names), feeds, by_column=True)


def _largest(
    model: onnx_ir.Model, names: list[str], feeds: Iterable[Mapping[str, npt.NDArray[Any]]], by_column: bool
) -> dict[str, npt.NDArray[np.float32]]:
    """Return the largest absolute values of tensors; only these leave the graph, so it takes no more memory than a run.

    Args:
        model: it is changed.
    """
    tensors = {str(value.name): value for value in _float_tensors(model.graph)}
    for name in names:
        _add_measuring_output(model.graph, tensors[name], by_column)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "measured.onnx"
        onnx_ir.save(model, path, external_data=f"{path.name}.data")
        onnxruntime = import_onnxruntime()
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        # Each tensor is measured when it is there; by default all are kept to the end of the run.
        options.execution_order = onnxruntime.ExecutionOrder.PRIORITY_BASED
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        largest = dict.fromkeys(names, np.zeros((), np.float32))
        for feed in feeds:
            values = session.run([_OUTPUT_PREFIX + name for name in names], dict(feed))
            largest = {name: np.maximum(largest[name], value) for name, value in zip(names, values, strict=True)}
    return largest


def _float_tensors(graph: onnx_ir.Graph) -> Iterator[onnx_ir.Value]:
    values = (*graph.inputs, *(value for node in graph for value in node.outputs))
    return (value for value in values if value.dtype == onnx_ir.DataType.FLOAT)


def _add_measuring_output(graph: onnx_ir.Graph, value: onnx_ir.Value, by_column: bool) -> None:
    """Add the largest absolute value of a tensor as an output, or that of each of its columns."""
    absolute = onnx_ir.Node("", "Abs", [value])
    inputs, shape = list(absolute.outputs), onnx_ir.Shape([])
    if by_column:
        assert value.shape is not None
        rows = np.arange(len(value.shape) - 1)
        inputs.append(ConstantPool(graph).add(f"rows_of.{value.name}", rows))
        shape = onnx_ir.Shape(value.shape[-1:])
    largest = onnx_ir.Node("", "ReduceMax", inputs, {"keepdims": onnx_ir.AttrInt64("keepdims", 0)})
    graph.extend([absolute, largest])
    output = largest.outputs[0]
    output.name, output.type, output.shape = _OUTPUT_PREFIX + str(value.name), value.type, shape
    graph.outputs.append(output)
