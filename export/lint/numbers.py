"""Rules on numbers: dtypes that agree, values that fit, attention that can be fused."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx
import onnx_ir
from onnx_ir import DataType

from export.lint.finding import Finding, Severity, Subject, error, place, warning, without_weights
from export.lint.support_table import CONTROL_FLOW, DATA_DEPENDENT

_LARGEST_IN_FP16 = 65504.0
_NEAR_LARGEST = 16384.0
_FLOATS = (DataType.FLOAT, DataType.FLOAT16, DataType.BFLOAT16)
_NARROW = (DataType.FLOAT16, DataType.BFLOAT16)
_READS_UINT8 = frozenset({"Cast", "CastLike", "Shape", "Size"})
_MOVES = frozenset(
    {
        *("Concat", "Expand", "Flatten", "Gather", "GatherElements", "GatherND", "Identity", "Pad", "Reshape"),
        *("ScatterElements", "ScatterND", "Slice", "Split", "Squeeze", "Tile", "Transpose", "Trilu", "Unsqueeze"),
    }
)
_READS_BOOL = _READS_UINT8 | _MOVES | {"And", "Equal", "Not", "OneHot", "Or", "Where", "Xor"}
"""What TensorRT-RTX 1.7's parser, which has TensorRT 11's rules, was seen to take of each dtype."""


def uint8(subject: Subject) -> Iterator[Finding]:
    """uint8 enters a graph through a Cast and leaves it through one; TensorRT has no uint8 tensors in between."""
    for node in subject.graph:
        reads_uint8 = any(value is not None and value.dtype == DataType.UINT8 for value in node.inputs)
        if reads_uint8 and node.op_type not in _READS_UINT8:
            yield error("dtype", node, "computes on uint8; cast it to a float right after the input")
        for output in node.outputs:
            if output.dtype == DataType.UINT8 and (output.uses() or not output.is_graph_output()):
                yield error("dtype", node, "makes uint8 inside the graph; only an input or output may be uint8")


def booleans(subject: Subject) -> Iterator[Finding]:
    """bool is for masks: it may be moved, combined by logic and selected with, but not reduced or rearranged."""
    for node in subject.graph:
        reads_bool = any(value is not None and value.dtype == DataType.BOOL for value in node.inputs)
        if reads_bool and node.op_type not in _READS_BOOL | DATA_DEPENDENT | CONTROL_FLOW:
            yield error("dtype", node, "computes on bool; cast it to a float or int32 first")


def doubles(subject: Subject) -> Iterator[Finding]:
    for value in (*subject.graph.inputs, *(output for node in subject.graph for output in node.outputs)):
        if value.dtype == DataType.DOUBLE:
            what = "is float64, which is cut to float32; make it float32 when exporting"
            yield Finding("warning", "dtype", f"{value.name}", what)


def agreement(subject: Subject) -> Iterator[Finding]:
    """What strong typing asks for: the float inputs of a node have one dtype, and annotations are true."""
    for node in subject.graph:
        if node.op_type in ("Cast", "CastLike", "QuantizeLinear", "DequantizeLinear", "Shape"):
            continue
        found = {value.dtype for value in node.inputs if value is not None and value.dtype in _FLOATS}
        if len(found) > 1:
            names = ", ".join(sorted(dtype.name for dtype in found))
            yield error("dtype", node, f"takes {names} together; cast them to one")
    if any(node.domain not in ("", "ai.onnx") for node in subject.graph):
        return  # found by another rule, and nothing can be inferred through them
    try:
        onnx.shape_inference.infer_shapes(without_weights(subject.model), check_type=True, strict_mode=True)
    except onnx.shape_inference.InferenceError as wrong:
        yield Finding("error", "dtype", "graph", " ".join(str(wrong).split())[:300])


def fused_attention(subject: Subject) -> Iterator[Finding]:
    """Products, softmax, product in one narrow dtype, with the scale before: what TensorRT makes one kernel of."""
    for node in subject.graph:
        if node.op_type != "Softmax":
            continue
        scores, after = _scores(node.inputs[0]), [use.node for use in node.outputs[0].uses()]
        if scores is None or [user.op_type for user in after] != ["MatMul"]:
            continue  # some other softmax
        if scores.op_type in ("Mul", "Div"):
            yield warning("attention", node, "the scale comes after the scores; put it on the queries")
            continue
        found = {value.dtype for value in (scores.outputs[0], node.outputs[0], after[0].outputs[0])}
        if found == {DataType.FLOAT}:
            yield warning("attention", node, "is float32, which is never fused; build with --precision fp16 or bf16")
        elif len(found) > 1:
            names = ", ".join(sorted(dtype.name for dtype in found if dtype is not None))
            yield warning("attention", node, f"mixes {names}, which keeps it from being fused")
        width = after[0].inputs[1].shape[-1] if after[0].inputs[1].shape is not None else None
        if isinstance(width, int) and not (16 <= width <= 256 and width % 8 == 0):
            what = f"heads are {width} wide; expected 16 to 256, a multiple of 8, for a fused kernel"
            yield warning("attention", node, what)


def _scores(value: onnx_ir.Value | None) -> onnx_ir.Node | None:
    """What made the scores of a softmax: the product, or the scale after it; looking through a mask."""
    node = value.producer() if value is not None else None
    while node is not None and (node.op_type in ("Where", "Cast") or (node.op_type == "Add" and _has_constant(node))):
        inputs = [one for one in node.inputs if one is not None and one.dtype in _FLOATS and one.const_value is None]
        node = inputs[0].producer() if inputs else None
    if node is None or node.op_type == "MatMul":
        return node
    if node.op_type in ("Mul", "Div") and _has_constant(node):
        before = node.inputs[0].producer() if node.inputs[0] is not None else None
        return node if before is not None and before.op_type == "MatMul" else None
    return None


def _has_constant(node: onnx_ir.Node) -> bool:
    return any(value is not None and value.const_value is not None for value in node.inputs)


def range_of_fp16(subject: Subject) -> Iterator[Finding]:
    for name, value in subject.graph.initializers.items():
        if value.dtype in _NARROW and value.const_value is not None:
            array = value.const_value.numpy().astype(np.float32)
            if array.size > 1 and not np.isfinite(array).all():  # a single one is a mask's, see below
                yield Finding("error", "range", name, "is not finite: it overflowed when it was made narrow")
    for node in subject.graph:
        for output in node.outputs:
            largest = subject.ranges.get(str(output.name), 0.0)
            if output.dtype == DataType.FLOAT16 and largest > _NEAR_LARGEST:
                severity: Severity = "error" if largest > _LARGEST_IN_FP16 else "warning"
                what = f"was measured at {largest:.3g}; float16 holds {_LARGEST_IN_FP16:.0f}; keep it in float32"
                yield Finding(severity, "range", place(node), what)


def masks(subject: Subject) -> Iterator[Finding]:
    """A mask of infinity, or beyond float16, is NaN once a whole row has it."""
    for node in subject.graph:
        if node.op_type not in ("Where", "Add"):
            continue
        for value in node.inputs:
            if value is None or value.const_value is None or value.dtype not in _FLOATS:
                continue
            array = value.const_value.numpy().astype(np.float64)
            if array.size and float(array.min()) < -_LARGEST_IN_FP16:
                yield error("range", node, f"masks with {float(array.min()):.3g}; take a finite one such as -1e4")


def norms(subject: Subject) -> Iterator[Finding]:
    """A norm in primitives squares its input, which overflows in float16 from 256 on."""
    for node in subject.graph:
        if node.op_type in ("Pow", "ReduceSumSquare") and node.outputs[0].dtype == DataType.FLOAT16:
            yield error("range", node, "squares float16; keep LayerNormalization one operator, in float32")


RULES = (uint8, booleans, doubles, agreement, fused_attention, range_of_fp16, masks, norms)
