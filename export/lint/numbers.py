"""Rules on numbers: dtypes that agree, values that fit, attention that can be fused."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx
import onnx_ir
from onnx_ir import DataType

from export.lint.finding import (
    LintContext,
    LintFinding,
    Severity,
    describe_node,
    error,
    warning,
    without_weights,
)
from export.lint.support_table import CONTROL_FLOW, DATA_DEPENDENT

_FP16_MAX = 65504.0
_FP16_WARNING = 16384.0
"""A measured value beyond which real inputs may leave the range of float16."""
_FLOATS = (DataType.FLOAT, DataType.FLOAT16, DataType.BFLOAT16)
_HALF_PRECISION = (DataType.FLOAT16, DataType.BFLOAT16)
_LAYOUT_OPS = frozenset(
    {
        *("Concat", "Expand", "Flatten", "Gather", "GatherElements", "GatherND", "Identity", "Pad", "Reshape"),
        *("ScatterElements", "ScatterND", "Slice", "Split", "Squeeze", "Tile", "Transpose", "Trilu", "Unsqueeze"),
    }
)
_UINT8_OPS = frozenset({"Cast", "CastLike", "Shape", "Size"})
"""The operators that TensorRT-RTX 1.7's parser, whose rules are TensorRT 11's, was seen to accept uint8 inputs for."""
_BOOL_OPS = _UINT8_OPS | _LAYOUT_OPS | {"And", "Equal", "Not", "OneHot", "Or", "Where", "Xor"}
"""The same for bool inputs."""


def check_uint8(context: LintContext) -> Iterator[LintFinding]:
    """Check that uint8 enters and leaves the graph through a Cast: inside, TensorRT has no uint8 tensors."""
    for node in context.graph:
        reads_uint8 = any(value is not None and value.dtype == DataType.UINT8 for value in node.inputs)
        if reads_uint8 and node.op_type not in _UINT8_OPS:
            yield error("dtype", node, "computes on uint8; cast it to a float right after the input")
        for output in node.outputs:
            if output.dtype == DataType.UINT8 and (output.uses() or not output.is_graph_output()):
                yield error("dtype", node, "makes uint8 inside the graph; only an input or output may be uint8")


def check_bool(context: LintContext) -> Iterator[LintFinding]:
    """Check that bool is only moved, combined by logic and selected with: TensorRT computes nothing else on it."""
    for node in context.graph:
        reads_bool = any(value is not None and value.dtype == DataType.BOOL for value in node.inputs)
        if reads_bool and node.op_type not in _BOOL_OPS | DATA_DEPENDENT | CONTROL_FLOW:
            yield error("dtype", node, "computes on bool; cast it to a float or int32 first")


def check_float64(context: LintContext) -> Iterator[LintFinding]:
    """Warn of float64, which TensorRT truncates to float32."""
    for value in (*context.graph.inputs, *(output for node in context.graph for output in node.outputs)):
        if value.dtype == DataType.DOUBLE:
            message = "is float64, which is truncated to float32; make it float32 when exporting"
            yield LintFinding("warning", "dtype", f"{value.name}", message)


def check_dtype_agreement(context: LintContext) -> Iterator[LintFinding]:
    """Check what strong typing requires: a node's float inputs have one dtype, and annotations are true."""
    for node in context.graph:
        if node.op_type in ("Cast", "CastLike", "QuantizeLinear", "DequantizeLinear", "Shape"):
            continue
        found = {value.dtype for value in node.inputs if value is not None and value.dtype in _FLOATS}
        if len(found) > 1:
            names = ", ".join(sorted(dtype.name for dtype in found))
            yield error("dtype", node, f"takes {names} together; cast them to one")
    if any(node.domain not in ("", "ai.onnx") for node in context.graph):
        return  # found by another rule, and nothing can be inferred through them
    try:
        onnx.shape_inference.infer_shapes(without_weights(context.model), check_type=True, strict_mode=True)
    except onnx.shape_inference.InferenceError as failure:
        yield LintFinding("error", "dtype", "graph", " ".join(str(failure).split())[:300])


def check_attention_fusion(context: LintContext) -> Iterator[LintFinding]:
    """Warn of attention that TensorRT will not fuse into one kernel.

    It fuses a product, a softmax and a product, all in one half precision, with the scale before them.
    """
    for node in context.graph:
        if node.op_type != "Softmax":
            continue
        scores, users = _find_scores(node.inputs[0]), [use.node for use in node.outputs[0].uses()]
        if scores is None or [user.op_type for user in users] != ["MatMul"]:
            continue  # not attention
        if scores.op_type in ("Mul", "Div"):
            yield warning("attention", node, "the scale comes after the scores; put it on the queries")
            continue
        found = {value.dtype for value in (scores.outputs[0], node.outputs[0], users[0].outputs[0])}
        if found == {DataType.FLOAT}:
            yield warning("attention", node, "is float32, which is never fused; build with --precision fp16 or bf16")
        elif len(found) > 1:
            names = ", ".join(sorted(dtype.name for dtype in found if dtype is not None))
            yield warning("attention", node, f"mixes {names}, which keeps it from being fused")
        head_dim = users[0].inputs[1].shape[-1] if users[0].inputs[1].shape is not None else None
        if isinstance(head_dim, int) and not (16 <= head_dim <= 256 and head_dim % 8 == 0):
            message = f"heads are {head_dim} wide; expected 16 to 256, a multiple of 8, for a fused kernel"
            yield warning("attention", node, message)


def _find_scores(value: onnx_ir.Value | None) -> onnx_ir.Node | None:
    """Return the node that makes a softmax's scores, a product or the scale after one, looking through masks."""
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


def check_float16_range(context: LintContext) -> Iterator[LintFinding]:
    """Check that stored weights are finite and that float16 holds the values that were measured."""
    for name, value in context.graph.initializers.items():
        if value.dtype in _HALF_PRECISION and value.const_value is not None:
            array = value.const_value.numpy().astype(np.float32)
            if array.size > 1 and not np.isfinite(array).all():  # a single value is a mask's: see check_masks
                message = "is not finite: it overflowed when it was converted to half precision"
                yield LintFinding("error", "range", name, message)
    for node in context.graph:
        for output in node.outputs:
            largest = context.ranges.get(str(output.name), 0.0)
            if output.dtype == DataType.FLOAT16 and largest > _FP16_WARNING:
                severity: Severity = "error" if largest > _FP16_MAX else "warning"
                message = f"was measured at {largest:.3g}; float16 holds {_FP16_MAX:.0f}; keep it in float32"
                yield LintFinding(severity, "range", describe_node(node), message)


def check_masks(context: LintContext) -> Iterator[LintFinding]:
    """Check that masked logits stay finite in float16: a row that is masked entirely would be NaN."""
    for node in context.graph:
        if node.op_type not in ("Where", "Add"):
            continue
        for value in node.inputs:
            if value is None or value.const_value is None or value.dtype not in _FLOATS:
                continue
            array = value.const_value.numpy().astype(np.float64)
            if array.size and float(array.min()) < -_FP16_MAX:
                yield error("range", node, f"masks with {float(array.min()):.3g}; use a finite value such as -1e4")


def check_layer_norm(context: LintContext) -> Iterator[LintFinding]:
    """Check that norms are one operator: in primitives they square their input, and float16 overflows from 256 on."""
    for node in context.graph:
        if node.op_type in ("Pow", "ReduceSumSquare") and node.outputs[0].dtype == DataType.FLOAT16:
            yield error("range", node, "squares float16; keep LayerNormalization one operator, in float32")


RULES = (
    check_uint8,
    check_bool,
    check_float64,
    check_dtype_agreement,
    check_attention_fusion,
    check_float16_range,
    check_masks,
    check_layer_norm,
)
