"""Rules on operators: whether a version of TensorRT has them, and accepts the way they are used."""

from __future__ import annotations

import string
from collections.abc import Iterator, Mapping

import numpy as np
import onnx
import onnx_ir
from onnx_ir import DataType

from export.lint.finding import LintContext, LintFinding, Severity, error, format_version, warning
from export.lint.shape_inference import schema_of
from export.lint.support_table import (
    ATTRIBUTES,
    CONSTANT_INPUTS,
    CONTROL_FLOW,
    DATA_DEPENDENT,
    FLOATS,
    FOLDS_SHAPES,
    MAX_IR_VERSION,
    MAX_K,
    NEEDS_PLUGIN,
    OPTIONAL_ATTRIBUTES,
    OPTIONAL_INPUTS,
    OUTPUTS,
    QUANTIZED,
    REQUIRED_ATTRIBUTES,
    TAKES_ALL_INPUTS,
    TAKES_NO_MORE_INPUTS,
    TAKES_ONE_INPUT,
    Dtypes,
    newest_opset,
    supported_since,
)
from export.lint.tensors import input_of, int_attribute

_FLOATS_OF_8_BITS = frozenset({DataType.FLOAT8E4M3FN})


def check_opset(context: LintContext) -> Iterator[LintFinding]:
    """Check that TensorRT documents the graph's opset and IR version."""
    severity: Severity = "warning" if context.is_lenient else "error"
    newest = newest_opset(context.version)
    opset = context.model.opset_imports.get("", 1)
    if opset > newest:
        message = f"opset {opset}; TensorRT {format_version(context.version)} reads up to {newest}"
        yield LintFinding(severity, "opset", "graph", message)
    if context.model.ir_version > MAX_IR_VERSION:
        message = f"IR version {context.model.ir_version}; expected at most {MAX_IR_VERSION}; set it when exporting"
        yield LintFinding(severity, "opset", "graph", message)


def check_operators(context: LintContext) -> Iterator[LintFinding]:
    """Check that TensorRT has every operator; from 11 on it goes by the name, whatever the domain."""
    for node in context.nodes:
        since = supported_since(node.op_type)
        if node.domain not in ("", "ai.onnx") and (since is None or not context.is_lenient):
            yield error("operator", node, f"of the domain {node.domain}; build the graph with ONNX's own operators")
            continue
        if node.domain not in ("", "ai.onnx"):
            yield warning("operator", node, f"of the domain {node.domain}; TensorRT reads ONNX's operator of the name")
        if node.op_type in NEEDS_PLUGIN:
            yield error("operator", node, "TensorRT makes it by a plug-in, which not all its products have")
        elif since is None or since > context.version:
            available = f"has it from {format_version(since)} on" if since else "has it in no version"
            yield error("operator", node, f"TensorRT {format_version(context.version)} lacks it; it {available}")


def check_constant_inputs(context: LintContext) -> Iterator[LintFinding]:
    """Check that inputs that TensorRT must know when it parses a graph do not depend on its inputs."""
    for node in context.nodes:
        index, name, until = CONSTANT_INPUTS.get(node.op_type, (0, "", None))
        value = node.inputs[index] if name and index < len(node.inputs) else None
        if value is None or (until is not None and context.version >= until):
            continue
        is_resolved = node.op_type in FOLDS_SHAPES and str(value.name) in context.inference.known.resolved
        if not context.is_constant(value) and not is_resolved:
            yield error("constant", node, f"{name} is computed; it must be a constant")
        elif name == "K" and value.const_value is not None and int(value.const_value.numpy().max()) > MAX_K:
            largest = int(value.const_value.numpy().max())
            yield error("restriction", node, f"K is {largest}; expected at most {MAX_K}")


def check_attributes(context: LintContext) -> Iterator[LintFinding]:
    """Check that attributes have values that TensorRT takes."""
    for node in context.nodes:
        for (operator, name), restriction in ATTRIBUTES.items():
            if operator != node.op_type or name not in node.attributes:
                continue
            value = node.attributes[name].value
            values = value if isinstance(value, (tuple, list)) else [value]
            if not all(one in restriction.allowed for one in values):
                expected = restriction.expected or " or ".join(str(one) for one in restriction.allowed)
                yield error("restriction", node, f"{name} is {value}; expected {expected}")


def check_arity(context: LintContext) -> Iterator[LintFinding]:
    """Check that nodes have the inputs, outputs and attributes that TensorRT requires, and no others where it minds."""
    for node in context.nodes:
        schema = schema_of(node.op_type, context.opset)
        if schema is None or supported_since(node.op_type) is None:
            continue
        yield from _check_inputs(node, schema)
        fewest, most = OUTPUTS.get(node.op_type, (1, 1))
        given = sum(bool(output.name) for output in node.outputs)
        if not fewest <= given <= most:
            expected = f"{fewest} to {most}" if fewest < most else str(most)
            yield error("arity", node, f"has {given} outputs; expected {expected}")
        for name, attribute in schema.attributes.items():
            pair = (node.op_type, name)
            is_required = (attribute.required and pair not in OPTIONAL_ATTRIBUTES) or pair in REQUIRED_ATTRIBUTES
            if is_required and name not in node.attributes:
                yield error("arity", node, f"lacks the attribute {name}")


def _check_inputs(node: onnx_ir.Node, schema: onnx.defs.OpSchema) -> Iterator[LintFinding]:
    single = onnx.defs.OpSchema.FormalParameterOption.Single
    given = [value is not None for value in node.inputs]
    required = [
        index
        for index, one in enumerate(schema.inputs)
        if one.option == single and (node.op_type, index) not in OPTIONAL_INPUTS
    ]
    lacking = [index for index in required if not any(given[index : index + 1])]
    if node.op_type in TAKES_ALL_INPUTS and False in given:
        lacking.append(given.index(False))
    if lacking and not (node.op_type in TAKES_ONE_INPUT and given == [True]):
        yield error("arity", node, f"lacks input {lacking[0]}")
    if node.op_type in TAKES_NO_MORE_INPUTS and len(given) > schema.max_input:
        yield error("arity", node, f"has {len(given)} inputs; expected {schema.max_input} at most")


def check_tensors(context: LintContext) -> Iterator[LintFinding]:
    """Check that every tensor that is read is made somewhere."""
    for node in context.nodes:
        for value in node.inputs:
            if value is not None and not _is_made(value):
                yield error("tensor", node, f"reads {value.name}, which nothing makes")
    for value in context.graph.outputs:
        if not _is_made(value):
            yield LintFinding("error", "tensor", str(value.name), "is an output that nothing makes")


def _is_made(value: onnx_ir.Value) -> bool:
    return value.producer() is not None or value.is_graph_input() or value.is_initializer()


def check_attention(context: LintContext) -> Iterator[LintFinding]:
    """Check that the operator Attention has no cache, and either a mask or is causal."""
    for node in context.nodes:
        if node.op_type != "Attention":
            continue
        given = [value is not None for value in node.inputs]
        if any(given[4:6]) or (any(given[6:]) and not context.is_lenient):
            yield error("restriction", node, "has past keys, values or lengths; keep the cache outside of it")
        is_causal = "is_causal" in node.attributes and bool(node.attributes["is_causal"].as_int())
        if is_causal and len(given) > 3 and given[3]:
            yield error("restriction", node, "is causal and masked; give one mask that is both")


def check_resize(context: LintContext) -> Iterator[LintFinding]:
    """Check that Resize is not cubic before version 11."""
    for node in context.nodes:
        mode = node.attributes["mode"].as_string() if "mode" in node.attributes else "nearest"
        if node.op_type == "Resize" and mode == "cubic" and not context.is_lenient:
            yield error("restriction", node, "is cubic; expected nearest or linear, or bake the result into the graph")


def check_single_operators(context: LintContext) -> Iterator[LintFinding]:
    """Check restrictions that no table holds."""
    for node in context.nodes:
        if node.op_type == "Einsum" and "equation" in node.attributes:
            equation = node.attributes["equation"].as_string()
            if not set(equation) <= set(string.ascii_lowercase + "->., "):
                yield error("restriction", node, f"equation is {equation}; expected letters in lower case")
        elif node.op_type == "Dropout" and input_of(node, 2) is not None:
            mode = input_of(node, 2)
            if mode is None or mode.const_value is None or mode.const_value.numpy().any():
                yield error("restriction", node, "is for training; expected a training_mode that is the constant False")
        elif node.op_type == "Constant" and {"sparse_value", "value_string", "value_strings"} & set(node.attributes):
            yield error("restriction", node, "is a text or sparse; expected a tensor")


def check_quantization(context: LintContext) -> Iterator[LintFinding]:
    """Check that quantization is symmetric, with positive scales, between dtypes that TensorRT has."""
    for node in context.nodes:
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
            continue
        scale, zero_point = (*node.inputs[1:3], None, None)[:2]
        if zero_point is not None and not context.is_constant(zero_point) and not context.is_lenient:
            yield error("restriction", node, "its zero point is computed; quantize symmetrically")
        if zero_point is not None and _is_shifted(context, zero_point):
            yield error("restriction", node, "its zero point is not 0; quantize symmetrically")
        if scale is not None and scale.const_value is not None and np.any(_values(scale) <= 0):
            yield error("restriction", node, "its scales are not all positive")
        for name, allowed in _quantizer_dtypes(node).items():
            dtype = DataType(int_attribute(node, name, 0))
            if dtype != DataType.UNDEFINED and dtype not in allowed:
                expected = " or ".join(sorted(one.name.lower() for one in allowed)) or "none"
                yield error("restriction", node, f"{name} is {dtype.name.lower()}; expected {expected}")


def _is_shifted(context: LintContext, zero_point: onnx_ir.Value) -> bool:
    """Return whether a zero point is another number than 0; from 11 on the parser does not look at those of fp8."""
    if zero_point.const_value is None or (context.is_lenient and zero_point.const_value.dtype in _FLOATS_OF_8_BITS):
        return False
    return bool(np.any(_values(zero_point) != 0))


def _quantizer_dtypes(node: onnx_ir.Node) -> Mapping[str, Dtypes]:
    """Return what the attributes that choose dtypes may be."""
    if node.op_type == "DequantizeLinear":
        return {"output_dtype": FLOATS, "precision": frozenset()}
    zero_point = input_of(node, 2)
    dtype = zero_point.dtype if zero_point is not None else None
    return {"output_dtype": QUANTIZED if dtype is None else frozenset({dtype}), "precision": FLOATS}


def _values(value: onnx_ir.Value) -> np.ndarray:
    assert value.const_value is not None
    return value.const_value.numpy().astype(np.float32)


def check_graph_capture(context: LintContext) -> Iterator[LintFinding]:
    """Check that a run of the graph can be captured as a CUDA graph."""
    for node in context.nodes:
        if node.op_type in DATA_DEPENDENT:
            yield error("capture", node, "its output's shape depends on values: no CUDA graph can hold it", "run")
        elif node.op_type in CONTROL_FLOW:
            yield error("capture", node, "is control flow: no CUDA graph can hold it", "run")


RULES = (
    check_opset,
    check_operators,
    check_constant_inputs,
    check_attributes,
    check_arity,
    check_tensors,
    check_attention,
    check_resize,
    check_single_operators,
    check_quantization,
    check_graph_capture,
)
