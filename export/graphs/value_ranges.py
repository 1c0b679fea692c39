"""The largest values that tensors of a graph take, as measured on some inputs: what float16 must hold."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy.typing as npt
import onnx_ir
import onnxruntime

_FLOATS = (onnx_ir.DataType.FLOAT,)
_PREFIX = "largest."


def measure_ranges(model: onnx_ir.Model, feeds: Iterable[Mapping[str, npt.NDArray[Any]]]) -> dict[str, float]:
    """The largest absolute value of each float32 tensor that a graph computes or is given, by name.

    Only these values leave the graph, so it takes no more memory than a run.

    Args:
        feeds: inputs to run it on.
    """
    copy = model.clone()
    measured = _measure_all(copy.graph)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "measured.onnx"
        onnx_ir.save(copy, path, external_data=f"{path.name}.data")
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        largest = dict.fromkeys(measured, 0.0)
        for feed in feeds:
            found = session.run([_PREFIX + name for name in measured], dict(feed))
            largest = {name: max(largest[name], float(value)) for name, value in zip(measured, found, strict=True)}
    return largest


def _measure_all(graph: onnx_ir.Graph) -> list[str]:
    """Adds an output for each tensor; returns the tensors' names."""
    values = [value for value in graph.inputs if value.dtype in _FLOATS]
    values += [value for node in graph for value in node.outputs if value.dtype in _FLOATS]
    for value in values:
        size = onnx_ir.Node("", "Abs", [value])
        largest = onnx_ir.Node("", "ReduceMax", size.outputs, {"keepdims": onnx_ir.AttrInt64("keepdims", 0)})
        graph.extend([size, largest])
        output = largest.outputs[0]
        output.name, output.type, output.shape = _PREFIX + str(value.name), value.type, onnx_ir.Shape([])
        graph.outputs.append(output)
    return [str(value.name) for value in values]
