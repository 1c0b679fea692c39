"""Constants that are added to graphs, and removed from them."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir


def drop_unused_constants(graph: onnx_ir.Graph) -> None:
    """Remove the constants and weights that no node reads."""
    for value in list(graph.initializers.values()):
        if not value.uses():
            del graph.initializers[value.name]


class ConstantPool:
    """Makes constants of a graph; those that many nodes use, once."""

    def __init__(self, graph: onnx_ir.Graph) -> None:
        self._graph = graph

    def add(self, name: str, array: npt.NDArray[Any]) -> onnx_ir.Value:
        """Return the constant of a name, made of ``array`` when first asked for."""
        if name in self._graph.initializers:
            return self._graph.initializers[name]
        value = onnx_ir.Value(name=name, const_value=onnx_ir.tensor(array, name=name))
        value.type, value.shape = onnx_ir.TensorType(value.const_value.dtype), onnx_ir.Shape(array.shape)
        self._graph.initializers[name] = value
        return value

    def number(self, value: float) -> onnx_ir.Value:
        """Return a float32 scalar."""
        return self.add(f"number_{value:g}", np.array(value, np.float32))
