"""Dtypes and shapes as TensorRT's parser sees them.

The parser reads neither the dtypes and shapes that a graph records of inner tensors, nor which opset brought a dtype to
an operator. So dtypes are inferred here by the support table, and shapes one node after another.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx
import onnx_ir
from onnx_ir import DataType, serde

from export.lint.quantizers import quantized_dtype
from export.lint.shape_inference import MAX_RANK, infer_shapes
from export.lint.support_table import INTEGERS, OperatorSupport, operator_support
from export.lint.tensors import KnownTensors, Shape, input_of, int_attribute

_MAX_KEPT_ELEMENTS = 1024
_MAX_NUMBERS = 64
_FOLDED = {DataType.DOUBLE: DataType.FLOAT, DataType.UINT8: DataType.INT32}
"""What the parser makes of constants of some dtypes."""
_FOLDED_OPERATORS = frozenset({"Cast", "CastLike", "Dropout", "Identity", "Pad", "Size"})
"""Operators that make constants of constants."""
_SHAPE_ARITHMETIC = frozenset(
    {
        *(
            "Abs",
            "Add",
            "Cast",
            "Clip",
            "Concat",
            "Div",
            "Expand",
            "Gather",
            "Identity",
            "Max",
            "Min",
            "Mod",
            "Mul",
            "Neg",
        ),
        *("Pow", "Range", "ReduceSum", "Reshape", "Sign", "Slice", "Split", "Squeeze", "Sub", "Sum", "Tile"),
        *("Transpose", "Unsqueeze", "Where"),
    }
)
"""Operators that the parser computes on shapes."""
_DTYPE_ATTRIBUTES = {
    "Cast": "to",
    **dict.fromkeys(("EyeLike", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"), "dtype"),
    "DequantizeLinear": "output_dtype",
    **dict.fromkeys(("BlackmanWindow", "HammingWindow", "HannWindow"), "output_datatype"),
}
"""The attribute by which a node chooses the dtype of its output."""
_LIKE = {"CastLike": 1, "Where": 1, "DequantizeLinear": 1, "OneHot": 2}
"""The input whose dtype the output has, where it is not the first."""
_OTHER_OUTPUTS = {"TopK": DataType.INT64, "Dropout": DataType.BOOL}
"""The dtype of the second output, where it is not the first's."""
_ONE_OPERAND_IS_ITSELF = frozenset({"Equal", "Greater", "Less"})
"""Comparisons that the parser reads as nothing where they have one operand."""


@dataclass
class Inference:
    """What was inferred of a graph and its subgraphs.

    Attributes:
        misfits: nodes whose inputs do not fit each other in shape, and why.
    """

    known: KnownTensors = field(default_factory=KnownTensors)
    misfits: list[tuple[onnx_ir.Node, str]] = field(default_factory=list)


def infer(model: onnx_ir.Model) -> Inference:
    """Return what is inferred of a model's graph and subgraphs."""
    inference = Inference()
    _add_graph(inference, model.graph, int(model.opset_imports.get("", 1)))
    return inference


def subgraphs(node: onnx_ir.Node) -> Iterator[onnx_ir.Graph]:
    """Yield the graphs among a node's attributes."""
    for attribute in node.attributes.values():
        if attribute.type == onnx_ir.AttributeType.GRAPH:
            yield attribute.as_graph()


def _add_graph(inference: Inference, graph: onnx_ir.Graph, opset: int) -> None:
    for value in graph.inputs:
        sizes = value.shape
        shape = None if sizes is None else tuple(one if isinstance(one, int) else one.value for one in sizes)
        _add(inference.known, value, _truncated(value.dtype), shape)
    for name, value in graph.initializers.items():
        if value.const_value is not None:
            _add_constant(inference.known, name, value.const_value)
    for node in graph:
        for subgraph in subgraphs(node):
            _add_graph(inference, subgraph, opset)
        _add_node(inference, node, opset)


def _add(known: KnownTensors, value: onnx_ir.Value, dtype: DataType | None, shape: Shape | None) -> None:
    if dtype is not None:
        known.dtypes[str(value.name)] = dtype
    if shape is not None:
        known.shapes[str(value.name)] = shape


def _truncated(dtype: DataType | None) -> DataType | None:
    return DataType.FLOAT if dtype == DataType.DOUBLE else dtype


def _add_constant(known: KnownTensors, name: str, tensor: onnx_ir.TensorProtocol) -> None:
    known.dtypes[name] = _FOLDED.get(tensor.dtype, tensor.dtype)
    known.shapes[name] = tuple(int(size) for size in tensor.shape)
    count = int(np.prod(tensor.shape))
    is_small = count <= _MAX_KEPT_ELEMENTS and tensor.dtype != DataType.STRING
    known.constants[name] = _inline(name, tensor) if is_small else None
    if tensor.dtype in INTEGERS and len(tensor.shape) < 2 and count <= _MAX_NUMBERS:
        known.numbers[name] = tuple(int(one) for one in tensor.numpy().reshape(-1))


def _inline(name: str, tensor: onnx_ir.TensorProtocol) -> onnx.TensorProto:
    return serde.serialize_tensor(onnx_ir.Tensor(tensor.numpy(), dtype=tensor.dtype, name=name))


def _add_node(inference: Inference, node: onnx_ir.Node, opset: int) -> None:
    row, known = operator_support(node.op_type), inference.known
    constant = _constant_value(node)
    if constant is not None:
        _add_constant(known, str(node.outputs[0].name), constant)
        return
    inputs = [str(value.name) for value in node.inputs if value is not None]
    outputs = [str(value.name) for value in node.outputs]
    if inputs and node.op_type in _FOLDED_OPERATORS and all(name in known.constants for name in inputs):
        known.constants.update(dict.fromkeys(outputs))
    elif _is_resolved(known, node, inputs):
        known.resolved.update(outputs)
    if row is None or not node.outputs:
        return
    shapes, misfit = infer_shapes(known, node, opset) if inputs else ([], None)
    ranks = [len(shape) for shape in shapes if shape is not None]
    if max(ranks, default=0) > MAX_RANK:
        misfit = f"makes {max(ranks)} dimensions; expected {MAX_RANK} at most"
    if misfit:
        inference.misfits.append((node, misfit))
    for index, value in enumerate(node.outputs):
        _add(known, value, _output_dtype(known, node, row, index), shapes[index] if index < len(shapes) else None)
    numbers = _numbers(known, node)
    if numbers is not None:
        known.numbers[str(node.outputs[0].name)] = numbers


def _is_resolved(known: KnownTensors, node: onnx_ir.Node, inputs: list[str]) -> bool:
    """Return whether a node computes on shapes, and all that it computes on is known."""
    if node.op_type == "Shape":
        return all(isinstance(size, int) for size in known.shape(input_of(node, 0)) or (None,))
    is_known = bool(inputs) and all(name in known.constants or name in known.resolved for name in inputs)
    return is_known and node.op_type in _SHAPE_ARITHMETIC


def _constant_value(node: onnx_ir.Node) -> onnx_ir.TensorProtocol | None:
    """Return the value of a node Constant."""
    if node.op_type != "Constant":
        return None
    attributes = node.attributes
    if "value" in attributes:
        return attributes["value"].as_tensor()
    for name, dtype in (("value_float", np.float32), ("value_int", np.int64)):
        for one in (name, f"{name}s"):
            if one in attributes:
                return onnx_ir.tensor(np.array(attributes[one].value, dtype))
    return None


def _output_dtype(known: KnownTensors, node: onnx_ir.Node, row: OperatorSupport, index: int) -> DataType | None:
    """Return the dtype of a node's output."""
    if index:
        return _OTHER_OUTPUTS.get(node.op_type, _output_dtype(known, node, row, 0))
    if node.op_type in _ONE_OPERAND_IS_ITSELF and len(node.inputs) == 1:
        return known.dtype(input_of(node, 0))
    if row.output is not None:
        return row.output
    chosen = int_attribute(node, _DTYPE_ATTRIBUTES.get(node.op_type, ""), 0)
    if chosen:
        return _truncated(DataType(chosen))
    if node.op_type in ("RandomNormal", "RandomUniform", "BlackmanWindow", "HammingWindow", "HannWindow"):
        return DataType.FLOAT
    if node.op_type == "ConstantOfShape":
        value = node.attributes.get("value")
        dtype = value.as_tensor().dtype if value is not None else DataType.FLOAT
        return _FOLDED.get(dtype, dtype)
    if node.op_type in ("If", "Loop", "Scan"):
        return None
    if node.op_type == "QuantizeLinear":
        return quantized_dtype(known, node)
    return known.dtype(input_of(node, _LIKE.get(node.op_type, 0)))


def _numbers(known: KnownTensors, node: onnx_ir.Node) -> Shape | None:
    """Return the elements of an integer tensor that is made from shapes and constants."""
    first = input_of(node, 0)
    if node.op_type == "Shape":
        shape = known.shape(first)
        start = int_attribute(node, "start", 0)
        return None if shape is None else shape[start : int_attribute(node, "end", len(shape))]
    parts = [known.elements(value) for value in node.inputs]
    if node.op_type in ("Cast", "Identity", "Squeeze", "Unsqueeze"):
        return parts[0] if parts else None
    if not parts or None in parts:
        return None
    if node.op_type in ("Abs", "Neg"):
        signed = abs if node.op_type == "Abs" else operator.neg
        return tuple(signed(one) if isinstance(one, int) else None for one in parts[0] or ())
    if node.op_type == "Concat":
        return tuple(one for part in parts for one in part or ())
    if node.op_type == "Gather" and known.shape(first) == (len(parts[0] or ()),):
        return _picked(parts[0] or (), parts[1] or ())
    if node.op_type == "Slice" and known.shape(first) == (len(parts[0] or ()),):
        return _cut(parts[0] or (), [part for part in parts[1:] if part is not None])
    return None


def _cut(elements: Shape, bounds: Sequence[Shape]) -> Shape | None:
    """Return a slice of a vector by its start, end, axis and step, of which the last two may be missing."""
    numbers = [one for part in bounds for one in part if isinstance(one, int)]
    if not 2 <= len(numbers) == len(bounds) <= 4:
        return None
    start, end, _, step = (*numbers, *(0, 1)[len(numbers) - 2 :])
    if step == 0:
        return None
    return elements[start:end:step]


def _picked(elements: Shape, places: Shape) -> Shape | None:
    inside = [one for one in places if isinstance(one, int) and -len(elements) <= one < len(elements)]
    return tuple(elements[one] for one in inside) if len(inside) == len(places) else None
