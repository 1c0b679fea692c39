"""Looks for what TensorRT will not take in ONNX graphs: `python -m export.lint model.onnx --tensorrt 10.3`.

What passes will likely parse; only TensorRT itself can say that it does.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import onnx_ir

from export.lint import numbers, operators, shapes
from export.lint.finding import Finding, Profiles, Subject
from export.lint.support_table import Version

RULES = (*operators.RULES, *numbers.RULES, *shapes.RULES)


def lint(
    path: Path, version: Version, profiles: Profiles = (), ranges: Mapping[str, float] | None = None
) -> list[Finding]:
    """All findings of a graph, rule by rule.

    Args:
        version: of TensorRT, from 10.0.
        profiles: the shapes it is to take; none to leave them unchecked.
        ranges: largest absolute values of tensors, as `export.graphs.value_ranges` measures them.
    """
    subject = Subject(onnx_ir.load(path), version, profiles, ranges or {})
    return [finding for rule in RULES for finding in rule(subject)]
