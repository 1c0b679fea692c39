"""Greedy decoding that stays on the device: vectors go in, captions come out, and no step waits for the host.

Every buffer keeps its place from step to step, so that a step is one captured piece of work: the engine, and the few
operations that put what it chose where the next step reads it.

Shapes: R captions at once, D vector width, P positions (the most steps), H heads, d head width.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from runtime.backends import BindableEngine
from runtime.bundle import DecoderConfig
from runtime.bundle.graph_io import (
    ATTENTION_MASK,
    INPUT_IDS,
    LOG_PROBS,
    NEXT_TOKEN_IDS,
    POSITION,
    POSITION_IDS,
    VECTORS,
)
from runtime.decoding.batches import is_end
from runtime.decoding.kv_cache import KvCache
from runtime.decoding.state import DecodingState, PromptState

_POLL_EVERY = 4
"""Steps between two checks whether all captions have ended; up to twice as many are wasted."""


class DeviceGreedyDecoder:
    """Decodes up to R captions at once, always in the same memory.

    Args:
        engine: the decoder.
        rows: R.
        width: D.
        device: the engine's.
    """

    def __init__(
        self, engine: BindableEngine, config: DecoderConfig, rows: int, width: int, device: torch.device
    ) -> None:
        self.rows, self._config, self._stream = rows, config, engine.stream

        def buffer(name: str, *shape: int) -> Tensor:
            return torch.zeros(shape, dtype=engine.dtype(name), device=device)

        with self._stream.active(), torch.inference_mode():  # the memory belongs to the stream
            self._tokens = buffer(INPUT_IDS, rows)
            self._inputs: _StepInputs
            if config.prompt is None:
                self._inputs = _VectorInputs(buffer(VECTORS, rows, width), buffer(POSITION, 1))
            else:
                mask = buffer(ATTENTION_MASK, rows, config.cache_positions + 1)
                self._inputs = _PromptInputs(mask, buffer(POSITION_IDS, rows))
            self._step = torch.zeros(1, dtype=torch.int64, device=device)
            self._next_tokens, self._log_probs = buffer(NEXT_TOKEN_IDS, rows), buffer(LOG_PROBS, rows)
            self._cache = KvCache(config, rows, device)
            self._present = self._cache.present_buffers()
            shape = (rows, config.max_new_tokens)
            self._ids = torch.full(shape, config.eos_token_id, dtype=torch.int64, device=device)
            self._sums = torch.zeros(rows, device=device)
            self._ended = torch.zeros(rows, dtype=torch.bool, device=device)
            self._stops_at_eos = torch.ones(1, dtype=torch.bool, device=device)
            self._all_ended = torch.zeros(1, dtype=torch.bool, device=device)
            inputs = {INPUT_IDS: self._tokens, **self._inputs.buffers()}
            outputs = {NEXT_TOKEN_IDS: self._next_tokens, LOG_PROBS: self._log_probs}
            self._step_run = engine.bind(inputs | self._cache.inputs(), outputs | self._present)
            self.step_work = self._stream.capture(self._advance, self._step_run, before_each=self._rewind)

    @torch.inference_mode()
    def decode(
        self, vectors: Tensor, ignore_eos: bool, steps: int, state: DecodingState | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the tokens (R, steps), padded with end tokens, and the sums of log-probabilities (R,).

        Args:
            vectors: (r, D), no more of them than R.
            ignore_eos: count what comes after the end of a caption too.
            steps: at most as many as captions have tokens.
            state: the captions after their prompts; None for a decoder whose prompt is the vector.
        """
        rows = len(vectors)
        # Outside the stream, where they are read.
        ids, sums = self._ids.new_empty((rows, steps)), self._sums.new_empty(rows)
        with self._stream.active():
            self._reset(vectors, state, ignore_eos)
            pending: list[_FlagReadback] = []
            for step in range(int(state is not None), steps):
                self.step_work.run()
                if ignore_eos or (step + 1) % _POLL_EVERY:
                    continue
                # The readback before this one: the steps in between keep the device busy while the host waits for it.
                if pending and pending[-1].wait():
                    break
                pending.append(_FlagReadback(self._all_ended))
            ids.copy_(self._ids[:rows, :steps])
            sums.copy_(self._sums[:rows])
        return ids, sums

    def close(self) -> None:
        """Release the memory, and the engine's run over it; it cannot decode afterwards."""
        with self._stream.exclusive:
            self._stream.synchronize()
            # The work refers to this decoder, and would keep it until the garbage collector comes by.
            del self.step_work, self._step_run

    def _reset(self, vectors: Tensor, state: DecodingState | None, ignore_eos: bool) -> None:
        """Set the state before the first step. Old cache entries are finite, and no step reads beyond its own."""
        rows = len(vectors)
        self._rewind()
        self._ids.fill_(self._config.eos_token_id)
        self._sums.zero_()
        self._ended[:rows] = False
        self._ended[rows:] = True
        self._stops_at_eos.fill_(not ignore_eos)
        if isinstance(self._inputs, _VectorInputs):
            self._inputs.vectors[:rows] = vectors
            self._inputs.vectors[rows:] = 0
        if state is not None:
            self._continue_from(state, rows)

    def _continue_from(self, state: DecodingState, rows: int) -> None:
        """Take over what prompts left in a cache of their own, and the first tokens after them."""
        assert isinstance(state, PromptState)
        assert isinstance(self._inputs, _PromptInputs)
        assert state.first_log_probs is not None
        self._cache.copy_from(state.cache, rows)
        self._inputs.continue_from(state)
        log_probs, tokens = state.first_log_probs.max(dim=1)
        self._tokens[:rows] = tokens
        self._ids[:rows, 0] = tokens
        self._sums[:rows] = log_probs
        self._ended[:rows] = is_end(tokens, self._config.eos_token_ids) & self._stops_at_eos
        self._step.fill_(1)

    def _rewind(self) -> None:
        self._inputs.rewind()
        self._step.zero_()

    def _advance(self) -> None:
        """Do one step, in the memory that all steps use."""
        self._step_run.run()
        self._cache.write(self._present, self._inputs.slot)
        self._inputs.advance()
        self._tokens.copy_(self._next_tokens)
        chosen = self._tokens.masked_fill(self._ended, self._config.eos_token_id)
        self._ids.index_copy_(1, self._step, chosen[:, None])
        self._sums.add_(self._log_probs.masked_fill(self._ended, 0.0))
        self._ended.logical_or_(is_end(self._tokens, self._config.eos_token_ids) & self._stops_at_eos)
        torch.all(self._ended, dim=0, keepdim=True, out=self._all_ended)
        self._step.add_(1)


class _StepInputs(Protocol):
    """What a step reads besides the tokens and the cache, in memory that keeps its place.

    Attributes:
        slot: the position of the cache that the next step fills (1,) int64.
    """

    slot: Tensor

    def buffers(self) -> dict[str, Tensor]:
        """Return the memory by the names of inputs."""
        ...

    def rewind(self) -> None:
        """Go back to the first step."""
        ...

    def advance(self) -> None:
        """Go on to the next step."""
        ...


class _VectorInputs:
    """Of a decoder whose prompt is the vector: the vectors (R, D), and the position (1,)."""

    def __init__(self, vectors: Tensor, position: Tensor) -> None:
        self.vectors, self.slot = vectors, position

    def buffers(self) -> dict[str, Tensor]:
        return {VECTORS: self.vectors, POSITION: self.slot}

    def rewind(self) -> None:
        self.slot.zero_()

    def advance(self) -> None:
        self.slot.add_(1)


class _PromptInputs:
    """Of a decoder with a prompt: what is attended (R, P + 1), and each caption's own position (R,)."""

    def __init__(self, mask: Tensor, position_ids: Tensor) -> None:
        self.mask, self.position_ids = mask, position_ids
        self.slot = torch.zeros(1, dtype=torch.int64, device=mask.device)
        self._always = torch.ones_like(mask[:, :1])

    def buffers(self) -> dict[str, Tensor]:
        return {POSITION_IDS: self.position_ids, ATTENTION_MASK: self.mask}

    def rewind(self) -> None:
        self.slot.zero_()
        self.position_ids.zero_()
        self.mask.zero_()
        self.mask[:, -1] = True

    def continue_from(self, state: PromptState) -> None:
        """Take over the masks and positions of the first rows."""
        rows = len(state.mask)
        self.mask[:rows] = state.mask
        self.position_ids[:rows] = state.position_ids
        self.slot.fill_(state.cache.length)

    def advance(self) -> None:
        self.mask.index_copy_(1, self.slot, self._always)
        self.position_ids.add_(1)
        self.slot.add_(1)


class _FlagReadback:
    """An asynchronous copy of a flag to the host."""

    def __init__(self, flag: Tensor) -> None:
        self._arrived: torch.cuda.Event | None = None
        self._copy = torch.empty(1, dtype=torch.bool, pin_memory=flag.is_cuda)
        self._copy.copy_(flag, non_blocking=True)
        if flag.is_cuda:
            self._arrived = torch.cuda.Event()
            self._arrived.record()

    def wait(self) -> bool:
        """Return the flag, once the copy has arrived."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return bool(self._copy)
