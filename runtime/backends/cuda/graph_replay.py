"""Runs of an engine over again in the same memory, for shapes that come again: on a GPU each is one captured graph."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from threading import Lock

import torch
from torch import Tensor

from runtime.backends.base import BindableEngine, Engine
from runtime.backends.cuda.stream import Piece

_MOST_SHAPES = 4
"""That are kept; each holds its inputs and outputs, and its graph."""


@dataclass(frozen=True, eq=False)
class _Fixed:
    """Memory that one shape is run in, and the run."""

    inputs: Mapping[str, Tensor]
    outputs: Mapping[str, Tensor]
    piece: Piece


class ReplayedEngine:
    """Keeps the memory, and on a GPU the captured graph, of the first few shapes that are run twice.

    Args:
        engine: what is run; it is closed with this.
    """

    def __init__(self, engine: BindableEngine) -> None:
        self._engine = engine
        self._seen: set[object] = set()
        self._fixed: dict[object, _Fixed] = {}
        self._running = Lock()

    def run(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        with self._running:  # the memory is one
            return self._run(inputs)

    def _run(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        shape = tuple(sorted((name, tuple(tensor.shape)) for name, tensor in inputs.items()))
        if shape not in self._seen or (shape not in self._fixed and len(self._fixed) == _MOST_SHAPES):
            outputs = self._engine.run(inputs)
            self._seen.add(shape)
            return outputs
        if shape not in self._fixed:
            self._fixed[shape] = self._fix(inputs)
        fixed = self._fixed[shape]
        # On torch's stream, so that torch gives none of it to others before the work lined up here is done.
        outputs = {name: torch.empty_like(tensor) for name, tensor in fixed.outputs.items()}
        with self._engine.stream.active():
            for name, tensor in fixed.inputs.items():
                tensor.copy_(inputs[name], non_blocking=True)
            fixed.piece.run()
            for name, tensor in outputs.items():
                tensor.copy_(fixed.outputs[name])
        return outputs

    @property
    def captured(self) -> list[str]:
        """For each shape that is kept, why it is not one CUDA graph; "" where it is."""
        return [fixed.piece.why_not for fixed in self._fixed.values()]

    @property
    def runs_on(self) -> str:
        return self._engine.runs_on

    def close(self) -> None:
        self._fixed.clear()
        self._engine.close()

    @torch.inference_mode(False)  # what a caller's own inference mode makes cannot be written to outside of it
    def _fix(self, inputs: Mapping[str, Tensor]) -> _Fixed:
        own = {name: tensor.clone() for name, tensor in inputs.items()}
        outputs = self._engine.run(own)
        bound = self._engine.bind(own, outputs)
        return _Fixed(own, outputs, self._engine.stream.piece(bound.run, bound.capture))


def replayed(engine: Engine) -> Engine:
    """The engine, replayed if it can be."""
    return ReplayedEngine(engine) if isinstance(engine, BindableEngine) else engine
