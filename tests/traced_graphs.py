"""Graphs that one test run traces once: torch takes some seconds for each, and dozens of tests build the demo."""

from __future__ import annotations

import hashlib
import marshal
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import FunctionType

import onnx_ir
import pytest
from filelock import FileLock
from torch import nn
from torch._export import utils
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
                with _quick():
                    graph = trace(spec)
                onnx_ir.save(graph, path, external_data=data, size_threshold_bytes=_MAX_INLINE_BYTES)
        return onnx_ir.load(path)

    patch.setattr(exporter, "trace", stored)


_registry = cache(ONNXRegistry.from_torchlib)
_make_operators_known = cache(utils._materialize_cpp_cia_ops)


@contextmanager
def _quick() -> Iterator[None]:
    """Let torch trace without what it does again for each graph, or for those who look for mistakes in it.

    It reads the code of all its operators, and makes all of them known; it keeps results of operators, of which few
    come again; and it describes the stack at each node, which is not in the graph.
    """
    import torch._dynamo.config  # which takes a second

    with pytest.MonkeyPatch.context() as patch, torch._dynamo.config.patch(fake_tensor_cache_enabled=False):
        patch.setattr(ONNXRegistry, "from_torchlib", staticmethod(_registry))
        patch.setattr(utils, "_materialize_cpp_cia_ops", _make_operators_known)
        patch.setattr(torch.fx.config, "do_not_emit_stack_traces", True)
        yield


def _digest(spec: GraphSpec) -> str:
    """Return the SHA-256 of all that a graph depends on: classes, settings, weights, example and axes."""
    digest = hashlib.sha256()
    for part in (spec.io, spec.dynamic_shapes, *spec.example, *_contents(spec.module)):
        digest.update(part.detach().numpy().tobytes() if hasattr(part, "detach") else repr(part).encode())
    return digest.hexdigest()


def _contents(module: nn.Module) -> Iterator[object]:
    for name, part in module.named_modules():
        yield name, type(part)
        yield {key: _comparable(value) for key, value in vars(part).items() if not key.startswith("_")}
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        yield name, tensor.dtype, tensor.shape
        yield tensor


def _comparable(value: object) -> object:
    """Return a value; of a function its code, as Python describes it by an address, another in each process."""
    if isinstance(value, FunctionType) and value.__closure__ is None:
        code = marshal.dumps(value.__code__, 2)  # later versions depend on who else holds its parts
        return value.__module__, value.__qualname__, value.__defaults__, code
    return value
