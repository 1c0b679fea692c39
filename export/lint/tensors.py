"""What is known of the tensors of a graph before it runs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeAlias

import onnx
import onnx_ir
from onnx_ir import DataType

Size: TypeAlias = "int | str | None"
"""The size of a dimension: a number, a name, or unknown."""
Shape: TypeAlias = tuple[Size, ...]


@dataclass
class KnownTensors:
    """Dtypes, shapes and values by the names of tensors, for those of which they are known.

    Attributes:
        dtypes: as the parser sees them: it makes float32 of float64, and int32 of constants of uint8.
        constants: weights, and what the parser folds of them; small ones with their values.
        resolved: what else it computes of constants and shapes that are known.
        numbers: the elements of short integer tensors, computed from shapes too.
    """

    dtypes: dict[str, DataType] = field(default_factory=dict)
    shapes: dict[str, Shape] = field(default_factory=dict)
    constants: dict[str, onnx.TensorProto | None] = field(default_factory=dict)
    resolved: set[str] = field(default_factory=set)
    numbers: dict[str, Shape] = field(default_factory=dict)

    def dtype(self, value: onnx_ir.Value | None) -> DataType | None:
        """Return a tensor's dtype; None if there is no tensor, or its dtype is not known."""
        return None if value is None else self.dtypes.get(str(value.name))

    def shape(self, value: onnx_ir.Value | None) -> Shape | None:
        """Return a tensor's shape; None if there is no tensor, or its rank is not known."""
        return None if value is None else self.shapes.get(str(value.name))

    def elements(self, value: onnx_ir.Value | None) -> Shape | None:
        """Return the elements of a short integer tensor; None if they are not known."""
        return None if value is None else self.numbers.get(str(value.name))


def input_of(node: onnx_ir.Node, index: int) -> onnx_ir.Value | None:
    """Return an input of a node; None if it is not given."""
    return node.inputs[index] if index < len(node.inputs) else None


def int_attribute(node: onnx_ir.Node, name: str, default: int) -> int:
    """Return an integer attribute of a node."""
    return node.attributes[name].as_int() if name in node.attributes else default
