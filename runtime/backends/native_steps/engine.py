"""A decoder's step that the native kernels compute, from the first embedding to the next token.

Shapes: R rows, D vector width, E decoder width, L layers, H heads, d = E / H, P positions of the cache.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from runtime.backends.base import BindableEngine, EngineReport
from runtime.backends.native_gpt2 import Gpt2Layers, HeldGpt2, NativeGpt2, StepCache, StepInputs
from runtime.backends.native_steps.graph import StepGraph
from runtime.bundle import EngineFiles
from runtime.bundle.graph_io import (
    ALL_LOG_PROBS,
    ATTENTION_MASK,
    INPUT_IDS,
    LOG_PROBS,
    NEXT_TOKEN_IDS,
    POSITION,
    POSITION_IDS,
    VECTORS,
    past_names,
    present_names,
)
from runtime.errors import BackendError


class NativeStepEngine:
    """A step whose weights the kernels hold; it may run in several threads at once."""

    bindable: BindableEngine | None = None

    def __init__(self, graph: StepGraph, files: EngineFiles, gpt2: NativeGpt2) -> None:
        self._path, self._contract, self._gpt2 = files.graph, files.contract, gpt2
        self._embeddings, self._positions = graph.embeddings, graph.positions
        self._takes_vectors = graph.projection is not None
        self._vector_width = 0 if graph.projection is None else len(graph.projection.weights)
        self._chooses, self._word_count = graph.next_token.chooses, graph.next_token.word_count
        width = graph.embeddings.shape[1]
        self._entry = (graph.heads, len(graph.positions), width // graph.heads)
        self._model: HeldGpt2 | None = HeldGpt2(
            [Gpt2Layers(*(gpt2.hold(layer) for layer in block)) for block in graph.blocks],
            graph.heads,
            gpt2.hold(graph.vocabulary),
            graph.embeddings,
            self._word_count,
            None if graph.projection is None else gpt2.hold(graph.projection),
        )
        self._past, self._present = past_names(len(graph.blocks)), present_names(len(graph.blocks))

    def report(self) -> EngineReport:
        return EngineReport(f"CPU, the whole step by the native kernels ({self._gpt2.variant}) in 8 bits and bfloat16")

    def run(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        model = self._model
        if model is None:
            raise BackendError(f"{self._path}: it was closed; load the bundle again")
        heads, _, head_width = self._entry
        rows = len(inputs[INPUT_IDS])
        present = [torch.empty(rows, heads, 1, head_width) for _ in self._present]
        vectors = self._vectors(inputs)
        states = self._states(inputs, begins=vectors is not None)
        begin = StepInputs(rows, states.ctypes.data, None if vectors is None else vectors.data_ptr())
        cache = self._cache(inputs, rows, present)
        try:
            outputs = self._chosen(model, begin, cache) if self._chooses else self._log_probs(model, begin, cache)
        except MemoryError as error:
            raise BackendError(f"{self._path}: the native kernels failed: {error}") from error
        outputs.update(zip(self._present, present, strict=True))
        if self._contract is not None:
            self._contract.check_outputs(self._path, inputs, outputs)
        return outputs

    def close(self) -> None:
        self._model = None

    def _chosen(self, model: HeldGpt2, begin: StepInputs, cache: StepCache) -> dict[str, Tensor]:
        words, log_probs = torch.empty(begin.rows, dtype=torch.int64), torch.empty(begin.rows)
        self._gpt2.choose(model, begin, cache, words.data_ptr(), log_probs.data_ptr())
        return {NEXT_TOKEN_IDS: words, LOG_PROBS: log_probs}

    def _log_probs(self, model: HeldGpt2, begin: StepInputs, cache: StepCache) -> dict[str, Tensor]:
        log_probs = torch.empty(begin.rows, self._word_count)
        self._gpt2.log_probs(model, begin, cache, log_probs.data_ptr())
        return {ALL_LOG_PROBS: log_probs}

    def _states(self, inputs: Mapping[str, Tensor], begins: bool) -> npt.NDArray[np.float32]:
        """Return the states (R, E) before the blocks, but for the part of vectors that a caption begins with."""
        ids: npt.NDArray[np.int64] = inputs[INPUT_IDS].numpy()
        if not self._takes_vectors:
            return self._rows(self._embeddings, ids) + self._rows(self._positions, inputs[POSITION_IDS].numpy())
        position = self._rows(self._positions, inputs[POSITION].numpy())
        if begins:
            return np.repeat(position, len(ids), axis=0)
        return self._rows(self._embeddings, ids) + position

    def _vectors(self, inputs: Mapping[str, Tensor]) -> Tensor | None:
        """Return the vectors (R, D), where they are read: at position 0."""
        if not self._takes_vectors or inputs[POSITION].item() > 0:
            return None
        vectors, expected = inputs[VECTORS], (len(inputs[INPUT_IDS]), self._vector_width)
        if vectors.shape != expected or vectors.dtype != torch.float32 or not vectors.is_contiguous():
            raise BackendError(f"{self._path}: vectors: expected {expected} of float32, got {tuple(vectors.shape)}")
        return vectors

    def _rows(self, matrix: npt.NDArray[np.float32], places: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        try:
            return matrix.take(places, axis=0)
        except IndexError as error:
            raise BackendError(f"{self._path}: the native kernels cannot run it: {error}") from None

    def _cache(self, inputs: Mapping[str, Tensor], rows: int, present: list[Tensor]) -> StepCache:
        expected = (rows, *self._entry)
        past = [inputs[name] for name in self._past]
        for name, entry in zip(self._past, past, strict=True):
            if entry.shape != expected or entry.dtype != torch.float32 or not entry.is_contiguous():
                got = f"{tuple(entry.shape)} of {entry.dtype}"
                raise BackendError(f"{self._path}: {name}: expected {expected} of float32 in one piece, got {got}")
        positions = self._entry[1]
        if not self._takes_vectors:
            mask = inputs[ATTENTION_MASK].contiguous()[:, :positions].numpy()
        else:
            mask = (np.arange(positions) < inputs[POSITION].numpy())[None]
        if mask.shape not in ((rows, positions), (1, positions)) or mask.dtype != np.bool_:
            expected_mask = f"expected a mask of {rows} rows and {positions} positions in bool"
            raise BackendError(f"{self._path}: {expected_mask}, got {mask.shape} of {mask.dtype}")
        return StepCache(mask, [entry.data_ptr() for entry in past], [entry.data_ptr() for entry in present])
