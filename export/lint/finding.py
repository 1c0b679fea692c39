"""What rules look at and what they give."""

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


@dataclass(frozen=True)
class Finding:
    """Something that TensorRT will refuse (error) or do badly (warning).

    Attributes:
        rule: its name.
        place: the node, input or graph.
        what: what is there, what was expected, and the fix.
    """

    severity: Severity
    rule: str
    place: str
    what: str

    def __str__(self) -> str:
        return f"{self.severity}: {self.rule}: {self.place}: {self.what}"


@dataclass(frozen=True)
class Subject:
    """A graph and what it is looked at for.

    Attributes:
        version: of TensorRT.
        profiles: the shapes it is to take.
        ranges: the largest absolute values that were measured of its tensors.
    """

    model: onnx_ir.Model
    version: Version
    profiles: Profiles = ()
    ranges: Mapping[str, float] = field(default_factory=dict)

    @property
    def graph(self) -> onnx_ir.Graph:
        return self.model.graph


def error(rule: str, node: onnx_ir.Node, what: str) -> Finding:
    return Finding("error", rule, place(node), what)


def warning(rule: str, node: onnx_ir.Node, what: str) -> Finding:
    return Finding("warning", rule, place(node), what)


def place(node: onnx_ir.Node) -> str:
    return f"node {node.name!r} ({node.op_type})"


def said(version: Version | None) -> str:
    return ".".join(map(str, version or ()))


def without_weights(model: onnx_ir.Model) -> onnx.ModelProto:
    """A graph whose large weights are inputs, so that it is small; shapes are computed all the same."""
    proto = onnx_ir.to_proto(model)
    large = [one for one in proto.graph.initializer if int(np.prod(one.dims)) > 1024]
    kept = [one for one in proto.graph.initializer if int(np.prod(one.dims)) <= 1024]
    del proto.graph.initializer[:]
    proto.graph.initializer.extend(kept)
    known = {value.name for value in proto.graph.input}
    for one in large:
        if one.name not in known:
            proto.graph.input.append(onnx.helper.make_tensor_value_info(one.name, one.data_type, list(one.dims)))
    return proto
