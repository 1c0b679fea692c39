"""The lint context, and the findings that rules report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import numpy as np
import onnx
import onnx_ir

from export.lint.support_table import Version
from runtime.bundle import ShapeRange

Severity: TypeAlias = Literal["error", "warning"]
Profiles: TypeAlias = Sequence[Mapping[str, ShapeRange]]

_MAX_KEPT_ELEMENTS = 1024


@dataclass(frozen=True)
class LintFinding:
    """Something that TensorRT will refuse (error) or do badly (warning).

    Attributes:
        rule: the rule's name.
        location: the node, tensor, profile or graph.
        message: what is there, what was expected, and the fix.
    """

    severity: Severity
    rule: str
    location: str
    message: str

    def __str__(self) -> str:
        return f"{self.severity}: {self.rule}: {self.location}: {self.message}"


@dataclass(frozen=True)
class LintContext:
    """A graph and what it is checked for.

    Attributes:
        version: TensorRT's version.
        profiles: the shapes that the graph is to accept.
        ranges: the largest absolute values that were measured, by tensor.
    """

    model: onnx_ir.Model
    version: Version
    profiles: Profiles = ()
    ranges: Mapping[str, float] = field(default_factory=dict)

    @property
    def graph(self) -> onnx_ir.Graph:
        """The model's graph."""
        return self.model.graph


def error(rule: str, node: onnx_ir.Node, message: str) -> LintFinding:
    """Return an error at a node."""
    return LintFinding("error", rule, describe_node(node), message)


def warning(rule: str, node: onnx_ir.Node, message: str) -> LintFinding:
    """Return a warning at a node."""
    return LintFinding("warning", rule, describe_node(node), message)


def describe_node(node: onnx_ir.Node) -> str:
    """Return a node's name and operator for messages: "node 'mul_3' (Mul)"."""
    return f"node {node.name!r} ({node.op_type})"


def format_version(version: Version) -> str:
    """Return a version as users write it: "10.3"."""
    return ".".join(map(str, version))


def without_weights(model: onnx_ir.Model) -> onnx.ModelProto:
    """Return the graph with its large weights as inputs: small, but with all that shape inference needs."""
    proto = onnx_ir.to_proto(model)
    weights = list(proto.graph.initializer)
    large = [weight for weight in weights if int(np.prod(weight.dims)) > _MAX_KEPT_ELEMENTS]
    stored = model.graph.initializers
    small = [_with_data(stored[weight.name]) for weight in weights if int(np.prod(weight.dims)) <= _MAX_KEPT_ELEMENTS]
    del proto.graph.initializer[:]
    proto.graph.initializer.extend(small)
    known = {value.name for value in proto.graph.input}
    for weight in large:
        if weight.name not in known:
            info = onnx.helper.make_tensor_value_info(weight.name, weight.data_type, list(weight.dims))
            proto.graph.input.append(info)
    return proto


def _with_data(weight: onnx_ir.Value) -> onnx.TensorProto:
    """Return a weight with its values, which inference does not read from a file of their own."""
    assert weight.const_value is not None
    return onnx_ir.to_proto(onnx_ir.tensor(weight.const_value.numpy(), weight.const_value.dtype, name=weight.name))
