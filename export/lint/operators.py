"""Rules on operators: whether a version of TensorRT has them, and accepts the way they are used."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from export.lint.finding import LintContext, LintFinding, error, format_version
from export.lint.support_table import (
    CONSTANT_INPUTS,
    CONTROL_FLOW,
    DATA_DEPENDENT,
    MAX_IR_VERSION,
    MAX_K,
    newest_opset,
    supported_since,
)


def check_opset(context: LintContext) -> Iterator[LintFinding]:
    """Check that TensorRT reads the graph's opset and IR version."""
    newest = newest_opset(context.version)
    opset = context.model.opset_imports.get("", 1)
    if opset > newest:
        message = f"opset {opset}; TensorRT {format_version(context.version)} reads up to {newest}"
        yield LintFinding("error", "opset", "graph", message)
    if context.model.ir_version > MAX_IR_VERSION:
        message = f"IR version {context.model.ir_version}; expected at most {MAX_IR_VERSION}; set it when exporting"
        yield LintFinding("error", "opset", "graph", message)


def check_operators(context: LintContext) -> Iterator[LintFinding]:
    """Check that TensorRT has every operator."""
    for node in context.graph:
        if node.domain not in ("", "ai.onnx"):
            yield error("operator", node, f"of the domain {node.domain}; build the graph with ONNX's own operators")
            continue
        since = supported_since(node.op_type)
        if since is None or since > context.version:
            available = f"has it from {format_version(since)} on" if since else "has it in no version"
            yield error("operator", node, f"TensorRT {format_version(context.version)} lacks it; it {available}")


def check_constant_inputs(context: LintContext) -> Iterator[LintFinding]:
    """Check that inputs that TensorRT must know when it builds an engine are constants."""
    for node in context.graph:
        index, name = CONSTANT_INPUTS.get(node.op_type, (0, ""))
        if name and index < len(node.inputs) and node.inputs[index] is not None:
            value = node.inputs[index].const_value
            if value is None:
                yield error("constant", node, f"{name} is computed; it must be a constant")
            elif name == "K" and int(value.numpy().max()) > MAX_K:
                yield error("restriction", node, f"K is {int(value.numpy().max())}; expected at most {MAX_K}")


def check_attention(context: LintContext) -> Iterator[LintFinding]:
    """Check that the operator Attention has no cache, one output, and either a mask or is causal."""
    for node in context.graph:
        if node.op_type != "Attention" or node.domain not in ("", "ai.onnx"):
            continue
        given = [value is not None for value in node.inputs]
        if any(given[4:]):
            yield error("restriction", node, "has past keys, values or lengths; keep the cache outside of it")
        if len([output for output in node.outputs if output.name and output.uses()]) > 1:
            yield error("restriction", node, "has several outputs; expected one")
        is_causal = "is_causal" in node.attributes and bool(node.attributes["is_causal"].as_int())
        if is_causal and len(given) > 3 and given[3]:
            yield error("restriction", node, "is causal and masked; give one mask that is both")
        if "softcap" in node.attributes and node.attributes["softcap"].as_float() != 0:
            yield error("restriction", node, "has a softcap; compute it in primitives")


def check_resize(context: LintContext) -> Iterator[LintFinding]:
    """Check that Resize neither antialiases nor is cubic."""
    for node in context.graph:
        if node.op_type != "Resize":
            continue
        mode = node.attributes["mode"].as_string() if "mode" in node.attributes else "nearest"
        if "antialias" in node.attributes and node.attributes["antialias"].as_int():
            yield error("restriction", node, "antialiases; resize before the graph, or bake the result into it")
        elif mode == "cubic":
            yield error("restriction", node, "is cubic; expected nearest or linear, or bake the result into the graph")


def check_quantization(context: LintContext) -> Iterator[LintFinding]:
    """Check that quantization is symmetric."""
    for node in context.graph:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear") and len(node.inputs) > 2 and node.inputs[2]:
            zero_point = node.inputs[2].const_value
            if zero_point is None or np.any(zero_point.numpy().astype(np.float32) != 0):
                yield error("restriction", node, "its zero point is not 0; quantize symmetrically")


def check_graph_capture(context: LintContext) -> Iterator[LintFinding]:
    """Check that a run of the graph can be captured as a CUDA graph."""
    for node in context.graph:
        if node.op_type in DATA_DEPENDENT:
            yield error("capture", node, "its output's shape depends on values: no CUDA graph can hold it")
        elif node.op_type in CONTROL_FLOW:
            yield error("capture", node, "is control flow: no CUDA graph can hold it")


RULES = (
    check_opset,
    check_operators,
    check_constant_inputs,
    check_attention,
    check_resize,
    check_quantization,
    check_graph_capture,
)
