"""Greedy decoding: the decoder engine is stepped with a KV cache until every caption has ended.

Shapes: R regions, D vector width, P positions (the most steps).
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from threading import Lock

import torch
from torch import Tensor

from runtime.backends import BindableEngine, Engine, EngineReport
from runtime.bundle import DecoderConfig
from runtime.bundle.graph_io import LOG_PROBS, NEXT_TOKEN_IDS
from runtime.decoding.batches import TokenSequences, decode_in_batches, is_end
from runtime.decoding.gpu_greedy import DeviceGreedyDecoder
from runtime.decoding.state import BeginDecoding, DecodingState, VectorState
from runtime.options import ProgressCallback

_MIN_ENDED_SHARE = 0.25
"""Ended captions leave the batch once they are so much of it: leaving moves the cache of all others."""


class GreedyDecoder:
    """Decodes with one engine, taking the likeliest token at each step.

    For an engine that can be bound to memory it keeps that memory, and the graphs captured over it, for each of a few
    batch sizes.

    Args:
        begin: reads the prompts of vectors; None for a decoder whose prompt is the vector.
    """

    def __init__(self, engine: Engine, config: DecoderConfig, begin: BeginDecoding | None = None) -> None:
        self._engine, self._config = engine, config
        self._begin = begin or partial(VectorState, config)
        self._device_decoders: dict[int, DeviceGreedyDecoder] = {}
        self._decoding = Lock()

    def decode(
        self,
        vectors: Tensor,
        ignore_eos: bool = False,
        max_new_tokens: int | None = None,
        progress: ProgressCallback | None = None,
        begin: BeginDecoding | None = None,
    ) -> TokenSequences:
        """Decode vectors (R, D) on the engine's device; equal vectors once.

        Args:
            ignore_eos: take every caption through all steps and count the log-probabilities after its end token too, as
                the published score does (published-system.md, section 6); the ids stay the same.
            max_new_tokens: stop after so many steps; None for as many as the decoder has positions.
            progress: called after each batch with how many of R captions are done.
            begin: reads the prompts of these vectors, if another than usual is to.
        """
        begin = begin or self._begin
        steps = min(self._config.max_new_tokens, max_new_tokens or self._config.max_new_tokens)

        def decode_batch(batch: Tensor) -> tuple[Tensor, Tensor]:
            bindable = self._engine.bindable
            if bindable is None:
                return _decode_batch(self._engine, self._config, begin(batch, 1), len(batch), ignore_eos, steps)
            with self._decoding:  # callers share the memory
                state = None if self._config.prompt is None else begin(batch, 1)
                return self._device_decoder(bindable, batch).decode(batch, ignore_eos, steps, state)

        return decode_in_batches(decode_batch, vectors, self._config, progress=progress)

    def report(self) -> EngineReport:
        """Return what executes the engine, and for each batch size whether its step is one CUDA graph."""
        fallbacks = tuple(decoder.step_work.fallback_reason for decoder in list(self._device_decoders.values()))
        return replace(self._engine.report(), graph_fallbacks=fallbacks)

    def close(self) -> None:
        """Close the engine, and release the memory that it was bound to."""
        with self._decoding:
            for decoder in self._device_decoders.values():
                decoder.close()
            self._device_decoders.clear()
        self._engine.close()

    def _device_decoder(self, engine: BindableEngine, batch: Tensor) -> DeviceGreedyDecoder:
        rows = next(rows for rows in self._config.batch_sizes if rows >= len(batch))
        if rows not in self._device_decoders:
            self._device_decoders[rows] = DeviceGreedyDecoder(engine, self._config, rows, batch.shape[1], batch.device)
        return self._device_decoders[rows]


def _decode_batch(
    engine: Engine, config: DecoderConfig, state: DecodingState, rows: int, ignore_eos: bool, steps: int
) -> tuple[Tensor, Tensor]:
    """Return the tokens (R, steps), padded with end tokens, and the sums of log-probabilities (R,)."""
    device = state.device
    ids = torch.full((rows, steps), config.eos_token_id, dtype=torch.int64, device=device)
    sums = torch.zeros(rows, device=device)
    tokens = torch.zeros(rows, dtype=torch.int64, device=device)
    indices = torch.arange(rows, device=device)  # of the captions still in the batch
    ended = torch.zeros(rows, dtype=torch.bool, device=device)
    for step in range(steps):
        tokens, log_probs = _next_tokens(engine, state, tokens, step)
        ids[indices, step] = tokens.masked_fill(ended, config.eos_token_id)
        sums[indices] += log_probs.masked_fill(ended, 0.0)
        if ignore_eos:
            continue
        ended |= is_end(tokens, config.eos_token_ids)
        active = torch.nonzero(~ended)[:, 0]
        if len(active) == 0:
            break
        if len(active) <= (1 - _MIN_ENDED_SHARE) * len(ended):
            tokens, indices, ended = tokens[active], indices[active], ended[active]
            state.select_rows(active)
    return ids, sums


def _next_tokens(engine: Engine, state: DecodingState, tokens: Tensor, step: int) -> tuple[Tensor, Tensor]:
    """Return the likeliest tokens (R,) after ``tokens`` (R,), and their log-probabilities (R,)."""
    if step == 0 and state.first_log_probs is not None:
        log_probs, chosen = state.first_log_probs.max(dim=1)
        return chosen, log_probs
    outputs = engine.run(state.inputs(tokens))
    state.append(outputs)
    return outputs[NEXT_TOKEN_IDS], outputs[LOG_PROBS]
