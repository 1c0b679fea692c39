"""Finds what TensorRT will not accept in ONNX graphs: `python -m export.lint model.onnx --tensorrt 10.3`.

A graph without errors will likely parse; only TensorRT itself can say that it does.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import onnx_ir
from google.protobuf.message import DecodeError

from export.lint import dtypes, numbers, operators, shapes
from export.lint.finding import LintContext, LintFinding, Profiles
from export.lint.support_table import Version

RULES = (*operators.RULES, *dtypes.RULES, *numbers.RULES, *shapes.RULES)


def lint(
    path: Path, version: Version, profiles: Profiles = (), ranges: Mapping[str, float] | None = None
) -> list[LintFinding]:
    """Return the findings of all rules on a graph, rule by rule.

    Args:
        version: TensorRT's version, from 10.0.
        profiles: the shapes that the graph is to accept; none to leave them unchecked.
        ranges: the largest absolute values of tensors, as `export.graphs.value_ranges` measures them.

    Raises:
        ValueError: the file is no ONNX graph.
    """
    try:
        model = onnx_ir.load(path)
    except DecodeError as error:
        raise ValueError(f"{path}: no ONNX graph: {error}") from None
    context = LintContext(model, version, profiles, ranges or {})
    return [finding for rule in RULES for finding in rule(context)]
