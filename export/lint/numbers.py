"""Rules on numbers: values that fit, attention that can be fused."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir
from onnx_ir import DataType

from export.lint.finding import LintContext, LintFinding, Severity, describe_node, error, warning
from export.lint.tensors import input_of

_FP16_MAX = 65504.0
_FP16_WARNING = 16384.0
"""A measured value beyond which real inputs may leave the range of float16."""
_FLOATS = (DataType.FLOAT, DataType.FLOAT16, DataType.BFLOAT16)
_HALF_PRECISION = (DataType.FLOAT16, DataType.BFLOAT16)


def check_float64(context: LintContext) -> Iterator[LintFinding]:
    """Warn of float64, which TensorRT truncates to float32."""
    for value in (*context.graph.inputs, *(output for node in context.graph for output in node.outputs)):
        if value.dtype == DataType.DOUBLE:
            message = "is float64, which is truncated to float32; make it float32 when exporting"
            yield LintFinding("warning", "dtype", f"{value.name}", message, "run")


def check_attention_fusion(context: LintContext) -> Iterator[LintFinding]:
    """Warn of attention that TensorRT will not fuse into one kernel.

    It fuses a product, a softmax and a product, all in one half precision, with the scale before them.
    """
    for node in context.graph:
        if node.op_type != "Softmax":
            continue
        scores, users = _find_scores(input_of(node, 0)), [use.node for use in node.outputs[0].uses()]
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
        values = input_of(users[0], 1)
        shape = values.shape if values is not None else None
        head_dim = shape[-1] if shape else None
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
        first = input_of(node, 0)
        before = first.producer() if first is not None else None
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
                yield LintFinding("error", "range", name, message, "run")
    for node in context.graph:
        for output in node.outputs:
            largest = context.ranges.get(str(output.name), 0.0)
            if output.dtype == DataType.FLOAT16 and largest > _FP16_WARNING:
                severity: Severity = "error" if largest > _FP16_MAX else "warning"
                message = f"was measured at {largest:.3g}; float16 holds {_FP16_MAX:.0f}; keep it in float32"
                yield LintFinding(severity, "range", describe_node(node), message, "run")


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
                message = f"masks with {float(array.min()):.3g}; use a finite value such as -1e4"
                yield error("range", node, message, "run")


def check_layer_norm(context: LintContext) -> Iterator[LintFinding]:
    """Check that norms are one operator: in primitives they square their input, and float16 overflows from 256 on."""
    for node in context.graph:
        if node.op_type in ("Pow", "ReduceSumSquare") and node.outputs and node.outputs[0].dtype == DataType.FLOAT16:
            message = "squares float16; keep LayerNormalization one operator, in float32"
            yield error("range", node, message, "run")


RULES = (
    check_float64,
    check_attention_fusion,
    check_float16_range,
    check_masks,
    check_layer_norm,
)
