"""Replays an engine in fixed buffers, on a GPU as a CUDA graph, for input shapes seen before."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from runtime.backends.base import BindableEngine, Engine, EngineReport
from runtime.backends.cuda.stream import CapturedWork

_MAX_SHAPES = 4
"""Each shape that is kept holds its inputs and outputs, and its graph."""


@dataclass(frozen=True, eq=False)
class _FixedShape:
    """The memory that one input shape is run in, and the run."""

    inputs: Mapping[str, Tensor]
    outputs: Mapping[str, Tensor]
    work: CapturedWork


class CudaGraphEngine:
    """Keeps the memory, and on a GPU the captured graph, of the first few input shapes that are run twice.

    Args:
        engine: the engine that is run; it is closed with this one.
    """

    bindable: BindableEngine | None = None

    def __init__(self, engine: BindableEngine) -> None:
        self._engine = engine
        self._seen: set[object] = set()
        self._fixed: dict[object, _FixedShape] = {}

    def run(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        with self._engine.stream.exclusive:  # callers share the memory
            return self._run(inputs)

    def _run(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        shape = tuple(sorted((name, tuple(tensor.shape)) for name, tensor in inputs.items()))
        if shape not in self._seen or (shape not in self._fixed and len(self._fixed) == _MAX_SHAPES):
            outputs = self._engine.run(inputs)
            self._seen.add(shape)
            return outputs
        if shape not in self._fixed:
            self._fixed[shape] = self._fix(inputs)
        fixed = self._fixed[shape]
        # Outside the stream, where they are read.
        outputs = {name: torch.empty_like(tensor) for name, tensor in fixed.outputs.items()}
        with self._engine.stream.active():
            for name, tensor in fixed.inputs.items():
                tensor.copy_(inputs[name], non_blocking=True)
            fixed.work.run()
            for name, tensor in outputs.items():
                tensor.copy_(fixed.outputs[name])
        return outputs

    def report(self) -> EngineReport:
        fallbacks = tuple(fixed.work.fallback_reason for fixed in list(self._fixed.values()))
        return replace(self._engine.report(), graph_fallbacks=fallbacks)

    def close(self) -> None:
        stream = self._engine.stream
        with stream.exclusive:
            stream.synchronize()
            self._fixed.clear()
            self._engine.close()

    @torch.inference_mode(False)  # tensors made in a caller's inference mode cannot be written to outside of it
    def _fix(self, inputs: Mapping[str, Tensor]) -> _FixedShape:
        stream = self._engine.stream
        with stream.active():  # which the memory then belongs to
            own = {name: tensor.clone() for name, tensor in inputs.items()}
            outputs = self._engine.run(own)
            bound = self._engine.bind(own, outputs)
            return _FixedShape(own, outputs, stream.capture(bound.run, bound))


def with_cuda_graphs(engine: Engine) -> Engine:
    """Return the engine, replayed where it can be bound to memory."""
    return engine if engine.bindable is None else CudaGraphEngine(engine.bindable)
