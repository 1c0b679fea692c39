"""Graphs that one test run traces once: torch takes some seconds for each, and dozens of tests build the demo."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import onnx_ir
import pytest
from filelock import FileLock
from torch import nn
from torch.onnx._internal.exporter._registration import ONNXRegistry

from export.graphs import exporter, tracing
from export.graphs.specs import GraphSpec

_MAX_INLINE_BYTES = 2**13
"""Smaller tensors stay in the graph, as a graph that shares another's weights has them."""


def trace_once(folder: Path, patch: pytest.MonkeyPatch) -> None:
    """Make the exporter read a graph from ``folder`` if it was traced before from an equal module and example."""
    folder.mkdir(exist_ok=True)
    trace = tracing.trace

    def stored(spec: GraphSpec) -> onnx_ir.Model:
        path = folder / f"{_digest(spec)}.onnx"
        with FileLock(path.with_suffix(".lock")):
            if not path.exists():
                # a graph may have 2 GiB and more
                data = f"{path.name}.data"
                onnx_ir.save(trace(spec), path, external_data=data, size_threshold_bytes=_MAX_INLINE_BYTES)
        return onnx_ir.load(path)

    patch.setattr(exporter, "trace", stored)
    # torch reads the code of all its operators again for each graph, half a second
    patch.setattr(ONNXRegistry, "from_torchlib", staticmethod(cache(ONNXRegistry.from_torchlib)))


def _digest(spec: GraphSpec) -> str:
    """Return the SHA-256 of all that a graph depends on: classes, settings, weights, example and axes."""
    digest = hashlib.sha256()
    for part in (spec.io, spec.dynamic_shapes, *spec.example, *_contents(spec.module)):
        digest.update(part.detach().numpy().tobytes() if hasattr(part, "detach") else repr(part).encode())
    return digest.hexdigest()


def _contents(module: nn.Module) -> Iterator[object]:
    for name, part in module.named_modules():
        yield name, type(part)
        yield {key: value for key, value in vars(part).items() if not key.startswith("_")}
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        yield name, tensor.dtype, tensor.shape
        yield tensor
