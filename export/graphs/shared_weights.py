"""Graphs that refer to the weights of another graph, so that a bundle holds them once."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import onnx_ir

from export.graphs.errors import ExportError

_MAX_INLINE_BYTES = 2**13
"""Smaller tensors, mostly shapes and constants such as the ids of soft tokens, may lie in the graph itself."""


def share_weights(model: onnx_ir.Model, owner: Path) -> None:
    """Make each weight of ``model`` a reference to the same bytes in the data file of the graph ``owner``.

    Raises:
        ExportError: they are not there.
    """
    weights = [value.const_value for value in onnx_ir.load(owner).graph.initializers.values()]
    stored = {_fingerprint(weight): weight for weight in weights if isinstance(weight, onnx_ir.ExternalTensor)}
    for value in model.graph.initializers.values():
        weight = value.const_value
        found = stored.get(_fingerprint(weight))
        if found is not None:
            value.const_value = onnx_ir.ExternalTensor(
                found.location,
                found.offset,
                found.length,
                found.dtype,
                shape=found.shape,
                name=value.name,
                base_dir=found.base_dir,
            )
        elif weight.nbytes > _MAX_INLINE_BYTES:
            raise ExportError(f"{owner.name}.data: has no weight {value.name} of these values; export both again")


def _fingerprint(weight: Any) -> tuple[object, ...]:
    return weight.dtype, tuple(weight.shape), hashlib.sha256(weight.tobytes()).digest()
