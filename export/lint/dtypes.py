"""Rules on dtypes: what enters and leaves the graph, and what each operator takes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import onnx
import onnx_ir
from onnx_ir import DataType

from export.lint.finding import LintContext, LintFinding, error, without_weights
from export.lint.inference import subgraphs
from export.lint.shape_inference import schema_of
from export.lint.support_table import (
    FLOATS,
    INTEGERS,
    PARAMETERS,
    QUANTIZED,
    READABLE,
    REAL,
    TAKES_ALL_INPUTS,
    Dtypes,
    operator_support,
)

_FIXES = {
    DataType.UINT8: "computes on uint8; cast it to a float right after the input",
    DataType.BOOL: "computes on bool; cast it to a float or int32 first",
}


_PADS_WITH: dict[DataType | None, Dtypes] = {
    **dict.fromkeys(REAL, REAL),
    DataType.INT32: FLOATS | {DataType.INT32},
}
"""The dtypes of values that Pad pads another dtype with, besides its own."""


def check_readable(context: LintContext) -> Iterator[LintFinding]:
    """Check that TensorRT has the dtypes of inputs, outputs and weights."""
    graph = context.graph
    weights = [value for value in graph.initializers.values() if not value.is_graph_input()]
    for value in (*graph.inputs, *graph.outputs, *weights):
        dtype = value.const_value.dtype if value.const_value is not None else value.dtype
        if dtype not in READABLE:
            name = dtype.name.lower() if dtype is not None and dtype != DataType.UNDEFINED else "of no dtype"
            yield LintFinding("error", "dtype", str(value.name), f"is {name}, which TensorRT does not have; cast it")
    for value in graph.outputs:
        producer = value.producer()
        if producer is None or producer.op_type == "Constant":
            continue
        if context.dtype(value) == DataType.INT32 and value.dtype in READABLE - {DataType.INT32}:
            message = f"is int32, and the graph declares {value.dtype.name.lower()}; declare what it is"
            yield LintFinding("error", "dtype", str(value.name), message)


def check_casts(context: LintContext) -> Iterator[LintFinding]:
    """Check that casts make dtypes that TensorRT has."""
    for node in context.nodes:
        to = node.attributes["to"].as_int() if node.op_type == "Cast" and "to" in node.attributes else None
        if to is not None and DataType(to) not in READABLE:
            yield error("dtype", node, f"makes {DataType(to).name.lower()}, which TensorRT does not have")


def check_uint8(context: LintContext) -> Iterator[LintFinding]:
    """Check that uint8 enters and leaves the graph only: inside, TensorRT has no uint8 tensors."""
    for node in context.nodes:
        for output in node.outputs:
            if context.dtype(output) == DataType.UINT8 and not output.is_graph_output():
                yield error("dtype", node, "makes uint8 inside the graph; only an input or output may be uint8")


def check_operands(context: LintContext) -> Iterator[LintFinding]:
    """Check that each operator takes the dtypes of its inputs, and that operands have one dtype."""
    for node in context.nodes:
        row = operator_support(node.op_type)
        if row is None:
            continue
        operands: list[DataType] = []
        for index, value in enumerate(_read_inputs(context, node)):
            letter, dtype = row.inputs[min(index, len(row.inputs) - 1)], context.dtype(value)
            if dtype is None or value is None:
                continue
            if letter == "x":
                operands.append(dtype)
            elif letter in PARAMETERS:
                if letter != "b" and _is_clipped(value):
                    yield error("dtype", node, f"input {index} is computed by Relu; compute it by Max or Clip")
                computed, constant, expected = PARAMETERS[letter]
                if dtype not in (constant if context.is_constant(value) else computed):
                    yield error("dtype", node, f"input {index} is {dtype.name.lower()}; expected {expected}")
        yield from _check_operands(node, row.dtypes, operands)


def _is_clipped(value: onnx_ir.Value) -> bool:
    """Return whether integers come from Relu, which TensorRT does not compute on shapes."""
    producer = value.producer()
    if producer is None or producer.op_type not in ("Relu", "Concat", "Cast", "Identity", "Squeeze", "Unsqueeze"):
        return False
    return producer.op_type == "Relu" or any(one is not None and _is_clipped(one) for one in producer.inputs)


def _read_inputs(context: LintContext, node: onnx_ir.Node) -> Sequence[onnx_ir.Value | None]:
    """Return the inputs that the parser reads of a node, which may be given more."""
    schema = schema_of(node.op_type, context.opset)
    return node.inputs if schema is None or node.op_type in TAKES_ALL_INPUTS else node.inputs[: schema.max_input]


def _check_operands(node: onnx_ir.Node, dtypes: Dtypes, operands: list[DataType]) -> Iterator[LintFinding]:
    refused = [dtype for dtype in operands if dtype not in dtypes]
    if refused:
        expected = ", ".join(sorted(dtype.name.lower() for dtype in dtypes))
        default = f"computes on {refused[0].name.lower()}; expected one of {expected}"
        yield error("dtype", node, _FIXES.get(refused[0], default))
    elif len(set(operands)) > 1:
        names = ", ".join(sorted({dtype.name for dtype in operands}))
        yield error("dtype", node, f"takes {names} together; cast them to one")


def check_single_operators(context: LintContext) -> Iterator[LintFinding]:
    """Check what single operators take beyond the support table."""
    for node in context.nodes:
        found = [context.dtype(value) for value in node.inputs]
        if not found:
            continue
        if node.op_type == "Mod" and not _is_set(node, "fmod") and found[0] not in (*INTEGERS, None):
            yield error("dtype", node, "computes on floats with fmod = 0; set fmod, or cast them to integers")
        elif node.op_type == "Pow" and found in ([DataType.BOOL] * 2, [DataType.UINT8] * 2):
            yield error("dtype", node, _FIXES[DataType.BOOL if DataType.BOOL in found else DataType.UINT8])
        elif node.op_type == "Range" and found[0] == DataType.FLOAT and not all(map(context.is_constant, _given(node))):
            yield error("dtype", node, "counts computed floats; count integers and cast the result")
        elif node.op_type == "BatchNormalization" and found[0] in QUANTIZED and set(found[1:]) <= QUANTIZED:
            yield error("dtype", node, "has quantized parameters; expected floats")
        elif node.op_type in ("Equal", "Greater", "Less") and len(found) > 2 and DataType.BOOL not in found:
            yield error("dtype", node, "compares more than two operands")
        elif node.op_type == "Pad" and len(found) > 2 and not _pads_with(found[0], found[2]):
            yield error("dtype", node, f"pads {_name(found[0])} with {_name(found[2])}; cast them to one")


def _pads_with(dtype: DataType | None, value: DataType | None) -> bool:
    return dtype is None or value is None or value in _PADS_WITH.get(dtype, {dtype})


def _name(dtype: DataType | None) -> str:
    return dtype.name.lower() if dtype is not None else "unknown"


def _given(node: onnx_ir.Node) -> list[onnx_ir.Value]:
    return [value for value in node.inputs if value is not None]


def _is_set(node: onnx_ir.Node, attribute: str) -> bool:
    return attribute in node.attributes and bool(node.attributes[attribute].as_int())


def check_branches(context: LintContext) -> Iterator[LintFinding]:
    """Check that the branches of If make the same dtypes."""
    for node in context.nodes:
        branches = list(subgraphs(node)) if node.op_type == "If" else []
        for values in zip(*(branch.outputs for branch in branches), strict=False):
            found = {context.dtype(value) for value in values} - {None}
            if len(found) > 1:
                names = " and ".join(sorted(_name(dtype) for dtype in found))
                yield error("dtype", node, f"its branches make {names}; cast them to one")


def check_onnx(context: LintContext) -> Iterator[LintFinding]:
    """Check that the graph is valid ONNX, more of which the parser leaves out than it checks."""
    if any(node.domain not in ("", "ai.onnx") for node in context.graph):
        return  # found by another rule, and nothing can be inferred through them
    try:
        onnx.shape_inference.infer_shapes(without_weights(context.model), check_type=True, strict_mode=True)
    except (onnx.shape_inference.InferenceError, ValueError) as failure:
        yield LintFinding("error", "onnx", "graph", " ".join(str(failure).split())[:300], "build")


RULES = (check_readable, check_casts, check_operands, check_single_operators, check_branches, check_uint8, check_onnx)
