"""Rules on operators: whether a version has them, and takes them as they are used."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from export.lint.finding import Finding, Subject, error, said
from export.lint.support_table import (
    CONSTANT_INPUTS,
    CONTROL_FLOW,
    DATA_DEPENDENT,
    LARGEST_K,
    NEWEST_IR,
    newest_opset,
    support,
)


def opset(subject: Subject) -> Iterator[Finding]:
    newest = newest_opset(subject.version)
    opset = subject.model.opset_imports.get("", 1)
    if opset > newest:
        yield Finding(
            "error", "opset", "graph", f"opset {opset}; TensorRT {said(subject.version)} reads up to {newest}"
        )
    if subject.model.ir_version > NEWEST_IR:
        what = f"IR version {subject.model.ir_version}; expected at most {NEWEST_IR}; set it when exporting"
        yield Finding("error", "opset", "graph", what)


def operators(subject: Subject) -> Iterator[Finding]:
    for node in subject.graph:
        if node.domain not in ("", "ai.onnx"):
            yield error("operator", node, f"of the domain {node.domain}; build the graph with ONNX's own operators")
            continue
        found = support(node.op_type, subject.version)
        if not found.is_there:
            since = f"has it from {said(found.since)} on" if found.since else "has it in no version"
            yield error("operator", node, f"TensorRT {said(subject.version)} lacks it; it {since}")


def constants(subject: Subject) -> Iterator[Finding]:
    """Inputs that must be known when the engine is built."""
    for node in subject.graph:
        place, called = CONSTANT_INPUTS.get(node.op_type, (0, ""))
        if called and place < len(node.inputs) and node.inputs[place] is not None:
            value = node.inputs[place].const_value
            if value is None:
                yield error("constant", node, f"{called} is computed; it must be a constant")
            elif called == "K" and int(value.numpy().max()) > LARGEST_K:
                yield error("restriction", node, f"K is {int(value.numpy().max())}; expected at most {LARGEST_K}")


def attention(subject: Subject) -> Iterator[Finding]:
    """The operator Attention takes no cache, gives one output, and is causal or masked."""
    for node in subject.graph:
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


def resize(subject: Subject) -> Iterator[Finding]:
    for node in subject.graph:
        if node.op_type != "Resize":
            continue
        mode = node.attributes["mode"].as_string() if "mode" in node.attributes else "nearest"
        if "antialias" in node.attributes and node.attributes["antialias"].as_int():
            yield error("restriction", node, "antialiases; resize before the graph, or bake the result into it")
        elif mode == "cubic":
            yield error("restriction", node, "is cubic; expected nearest or linear, or bake the result into the graph")


def quantization(subject: Subject) -> Iterator[Finding]:
    for node in subject.graph:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear") and len(node.inputs) > 2 and node.inputs[2]:
            zero = node.inputs[2].const_value
            if zero is None or np.any(zero.numpy().astype(np.float32) != 0):
                yield error("restriction", node, "its zero point is not 0; quantize symmetrically")


def capture(subject: Subject) -> Iterator[Finding]:
    for node in subject.graph:
        if node.op_type in DATA_DEPENDENT:
            yield error("capture", node, "its output's shape depends on values: no CUDA graph can hold it")
        elif node.op_type in CONTROL_FLOW:
            yield error("capture", node, "is control flow: no CUDA graph can hold it")


RULES = (opset, operators, constants, attention, resize, quantization, capture)
