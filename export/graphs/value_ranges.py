"""Measures the largest values that a graph's tensors take on some inputs: what float16 must hold."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy.typing as npt
import onnx_ir

from runtime.backends.imports import import_onnxruntime

_OUTPUT_PREFIX = "largest."


def measure_ranges(model: onnx_ir.Model, feeds: Iterable[Mapping[str, npt.NDArray[Any]]]) -> dict[str, float]:
    """Return the largest absolute value of each float32 tensor that a graph computes or is given, by name.

    Only these values leave the graph, so measuring takes no more memory than a run.

    Args:
        feeds: inputs to run it on.
    """
    copy = model.clone()
    names = _add_measuring_outputs(copy.graph)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "measured.onnx"
        onnx_ir.save(copy, path, external_data=f"{path.name}.data")
        onnxruntime = import_onnxruntime()
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        # Each tensor is measured when it is there; by default all are kept to the end of the run.
        options.execution_order = onnxruntime.ExecutionOrder.PRIORITY_BASED
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        largest = dict.fromkeys(names, 0.0)
        for feed in feeds:
            values = session.run([_OUTPUT_PREFIX + name for name in names], dict(feed))
            largest = {name: max(largest[name], float(value)) for name, value in zip(names, values, strict=True)}
    return largest


def _add_measuring_outputs(graph: onnx_ir.Graph) -> list[str]:
    """Add the largest absolute value of each tensor as an output; return the tensors' names."""
    values = [value for value in graph.inputs if value.dtype == onnx_ir.DataType.FLOAT]
    values += [value for node in graph for value in node.outputs if value.dtype == onnx_ir.DataType.FLOAT]
    for value in values:
        absolute = onnx_ir.Node("", "Abs", [value])
        largest = onnx_ir.Node("", "ReduceMax", absolute.outputs, {"keepdims": onnx_ir.AttrInt64("keepdims", 0)})
        graph.extend([absolute, largest])
        output = largest.outputs[0]
        output.name, output.type, output.shape = _OUTPUT_PREFIX + str(value.name), value.type, onnx_ir.Shape([])
        graph.outputs.append(output)
    return [str(value.name) for value in values]
