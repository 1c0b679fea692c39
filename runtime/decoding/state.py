"""A batch of captions on its way: what each step reads of them besides the tokens chosen last.

Shapes: R captions, D vector width, S soft tokens, E decoder width, Q prompt tokens, P positions of the cache, V
vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol, TypeAlias

import torch
from torch import Tensor

from runtime.backends import Engine
from runtime.bundle import DecoderConfig
from runtime.bundle.graph_io import ALL_LOG_PROBS, ATTENTION_MASK, INPUT_IDS, POSITION, POSITION_IDS, VECTORS
from runtime.decoding.kv_cache import KvCache


class DecodingState(Protocol):
    """R captions between two steps of the decoder.

    Attributes:
        first_log_probs: of every token as the first (R, V); None where the first step gives them.
    """

    first_log_probs: Tensor | None

    @property
    def device(self) -> torch.device:
        """Where the captions are."""
        ...

    def inputs(self, tokens: Tensor) -> dict[str, Tensor]:
        """Return the inputs of the next step after ``tokens`` (R,)."""
        ...

    def append(self, outputs: Mapping[str, Tensor]) -> None:
        """Store what a step returned for the cache."""
        ...

    def select_rows(self, rows: Tensor) -> None:
        """Make caption i what caption ``rows[i]`` was, for int64 ``rows`` (R,)."""
        ...


BeginDecoding: TypeAlias = Callable[[Tensor, int], DecodingState]
"""Begins the captions of vectors (R, D), with room for so many captions of each."""


def next_log_probs(engine: Engine, state: DecodingState, tokens: Tensor, step: int) -> Tensor:
    """Return the log-probabilities of every token (R, V) after ``tokens`` (R,), which are not read before the first.

    Args:
        engine: the bundle's beam decoder.
        step: the number of tokens that the captions have.
    """
    if step == 0 and state.first_log_probs is not None:
        return state.first_log_probs
    outputs = engine.run(state.inputs(tokens))
    state.append(outputs)
    return outputs[ALL_LOG_PROBS]


class VectorState:
    """Captions whose first position is the vector itself, which the first step reads."""

    first_log_probs: Tensor | None = None

    def __init__(self, config: DecoderConfig, vectors: Tensor, captions_per_vector: int = 1) -> None:
        self._vectors = vectors
        self.cache = KvCache(config, len(vectors), vectors.device, captions_per_vector)

    @property
    def device(self) -> torch.device:
        return self._vectors.device

    def inputs(self, tokens: Tensor) -> dict[str, Tensor]:
        position = torch.tensor([self.cache.length], device=tokens.device)
        own = {VECTORS: self._vectors, INPUT_IDS: tokens.contiguous(), POSITION: position}
        return own | self.cache.inputs()

    def append(self, outputs: Mapping[str, Tensor]) -> None:
        self.cache.append(outputs)

    def select_rows(self, rows: Tensor) -> None:
        self._vectors = self._vectors[rows]
        self.cache.select_rows(rows)


class PromptState:
    """Captions after prompts of different lengths, which lie left-padded in the cache.

    Args:
        first_log_probs: those after the prompts (R, V).
        cache: with the prompts' entries.
        prompt_mask: (R, Q) bool, false for padding.
    """

    def __init__(self, first_log_probs: Tensor | None, cache: KvCache, prompt_mask: Tensor) -> None:
        self.first_log_probs, self.cache = first_log_probs, cache
        rows, device = len(prompt_mask), prompt_mask.device
        self.mask = torch.zeros(rows, cache.positions + 1, dtype=torch.bool, device=device)
        self.mask[:, : cache.length] = prompt_mask
        self.mask[:, -1] = True
        self.position_ids = prompt_mask.sum(dim=1)

    @property
    def device(self) -> torch.device:
        return self.mask.device

    def inputs(self, tokens: Tensor) -> dict[str, Tensor]:
        own = {INPUT_IDS: tokens.contiguous(), POSITION_IDS: self.position_ids, ATTENTION_MASK: self.mask}
        return own | self.cache.inputs()

    def append(self, outputs: Mapping[str, Tensor]) -> None:
        self.mask[:, self.cache.length] = True
        self.position_ids = self.position_ids + 1
        self.cache.append(outputs)

    def select_rows(self, rows: Tensor) -> None:
        self.mask, self.position_ids = self.mask[rows], self.position_ids[rows]
        self.cache.select_rows(rows)
