"""The lint context, and the findings that rules report."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal, TypeAlias

import numpy as np
import onnx
import onnx_ir
from onnx_ir import DataType, serde

from export.lint.inference import Inference, infer
from export.lint.support_table import LENIENT_SINCE, Version
from export.lint.tensors import Shape
from runtime.bundle import ShapeRange

Severity: TypeAlias = Literal["error", "warning"]
Stage: TypeAlias = Literal["parse", "build", "run"]
"""Where it shows: TensorRT cannot read the graph, cannot build it, or runs it badly."""
Profiles: TypeAlias = Sequence[Mapping[str, ShapeRange]]

_MAX_KEPT_ELEMENTS = 1024


@dataclass(frozen=True)
class LintFinding:
    """Something that TensorRT will refuse (error) or do badly (warning).

    Attributes:
        rule: the rule's name.
        location: the node, tensor, profile or graph.
        message: what is there, what was expected, and the fix.
        stage: where it shows. Only what the parser itself refuses is an error of the stage "parse".
    """

    severity: Severity
    rule: str
    location: str
    message: str
    stage: Stage = "parse"

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

    @property
    def opset(self) -> int:
        """The opset of ONNX's own operators."""
        return int(self.model.opset_imports.get("", 1))

    @property
    def nodes(self) -> Iterable[onnx_ir.Node]:
        """The nodes of the graph and of its subgraphs."""
        return self.graph.all_nodes()

    @property
    def is_lenient(self) -> bool:
        """Whether the version reads what older ones document as restricted."""
        return self.version >= LENIENT_SINCE

    @cached_property
    def inference(self) -> Inference:
        """The dtypes and shapes of all tensors, as the parser sees them."""
        return infer(self.model)

    def dtype(self, value: onnx_ir.Value | None) -> DataType | None:
        """Return a tensor's dtype for the parser; None if there is no tensor, or its dtype is not known."""
        return self.inference.known.dtype(value)

    def shape(self, value: onnx_ir.Value | None) -> Shape | None:
        """Return a tensor's shape for the parser; None if there is no tensor, or its rank is not known."""
        return self.inference.known.shape(value)

    def is_constant(self, value: onnx_ir.Value) -> bool:
        """Return whether a tensor is known before the graph runs."""
        return str(value.name) in self.inference.known.constants


def is_refused(findings: Iterable[LintFinding]) -> bool:
    """Return whether the parser would refuse a graph, by its findings."""
    return any(finding.severity == "error" and finding.stage == "parse" for finding in findings)


def error(rule: str, node: onnx_ir.Node, message: str, stage: Stage = "parse") -> LintFinding:
    """Return an error at a node."""
    return LintFinding("error", rule, describe_node(node), message, stage)


def warning(rule: str, node: onnx_ir.Node, message: str, stage: Stage = "run") -> LintFinding:
    """Return a warning at a node."""
    return LintFinding("warning", rule, describe_node(node), message, stage)


def describe_node(node: onnx_ir.Node) -> str:
    """Return a node's name and operator for messages: "node 'mul_3' (Mul)"."""
    return f"node {node.name!r} ({node.op_type})"


def format_version(version: Version) -> str:
    """Return a version as users write it: "10.3"."""
    return ".".join(map(str, version))


def without_weights(model: onnx_ir.Model) -> onnx.ModelProto:
    """Return the graph with its large weights as inputs: small, but with all that shape inference needs."""
    proto = serde.serialize_model(model)
    weights = list(proto.graph.initializer)
    large = [weight for weight in weights if int(np.prod(weight.dims)) > _MAX_KEPT_ELEMENTS]
    stored = model.graph.initializers
    small = [
        _with_data(stored[weight.name]) if weight.external_data else weight
        for weight in weights
        if int(np.prod(weight.dims)) <= _MAX_KEPT_ELEMENTS
    ]
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
    return serde.serialize_tensor(
        onnx_ir.tensor(weight.const_value.numpy(), weight.const_value.dtype, name=weight.name)
    )
