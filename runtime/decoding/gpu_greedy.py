"""Greedy decoding that stays on the device: vectors go in, captions come out, and no step waits for the host.

Every buffer keeps its place from step to step, so that a step is one captured piece of work: the engine, and the few
operations that put what it chose where the next step reads it.

Shapes: R captions at once, D vector width, P positions (the most steps), H heads, d head width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from runtime.backends import BindableEngine
from runtime.bundle import DecoderConfig
from runtime.bundle.graph_io import INPUT_IDS, LOG_PROBS, NEXT_TOKEN_IDS, POSITION, VECTORS
from runtime.decoding.kv_cache import KvCache

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
            self._vectors = buffer(VECTORS, rows, width)
            self._tokens, self._position = buffer(INPUT_IDS, rows), buffer(POSITION, 1)
            self._next_tokens, self._log_probs = buffer(NEXT_TOKEN_IDS, rows), buffer(LOG_PROBS, rows)
            self._cache = KvCache(config, rows, device)
            self._present = self._cache.present_buffers()
            shape = (rows, config.max_new_tokens)
            self._ids = torch.full(shape, config.eos_token_id, dtype=torch.int64, device=device)
            self._sums = torch.zeros(rows, device=device)
            self._ended = torch.zeros(rows, dtype=torch.bool, device=device)
            self._stops_at_eos = torch.ones(1, dtype=torch.bool, device=device)
            self._all_ended = torch.zeros(1, dtype=torch.bool, device=device)
            inputs = {VECTORS: self._vectors, INPUT_IDS: self._tokens, POSITION: self._position}
            outputs = {NEXT_TOKEN_IDS: self._next_tokens, LOG_PROBS: self._log_probs}
            self._step_run = engine.bind(inputs | self._cache.inputs(), outputs | self._present)
            self.step_work = self._stream.capture(self._advance, self._step_run, before_each=self._rewind)

    @torch.inference_mode()
    def decode(self, vectors: Tensor, ignore_eos: bool, steps: int) -> tuple[Tensor, Tensor]:
        """Return the tokens (R, steps), padded with end tokens, and the sums of log-probabilities (R,).

        Args:
            vectors: (r, D), no more of them than R.
            ignore_eos: count what comes after the end of a caption too.
            steps: at most P.
        """
        rows = len(vectors)
        # Outside the stream, where they are read.
        ids, sums = self._ids.new_empty((rows, steps)), self._sums.new_empty(rows)
        with self._stream.active():
            self._reset(vectors, ignore_eos)
            pending: list[_FlagReadback] = []
            for step in range(steps):
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

    def _reset(self, vectors: Tensor, ignore_eos: bool) -> None:
        """Set the state before the first step. Old cache entries are finite, and no step reads beyond its own."""
        rows = len(vectors)
        self._vectors[:rows] = vectors
        self._vectors[rows:] = 0
        self._rewind()
        self._ids.fill_(self._config.eos_token_id)
        self._sums.zero_()
        self._ended[:rows] = False
        self._ended[rows:] = True
        self._stops_at_eos.fill_(not ignore_eos)

    def _rewind(self) -> None:
        self._position.zero_()

    def _advance(self) -> None:
        """Do one step, in the memory that all steps use."""
        self._step_run.run()
        self._cache.write(self._present, self._position)
        self._tokens.copy_(self._next_tokens)
        chosen = self._tokens.masked_fill(self._ended, self._config.eos_token_id)
        self._ids.index_copy_(1, self._position, chosen[:, None])
        self._sums.add_(self._log_probs.masked_fill(self._ended, 0.0))
        self._ended.logical_or_((self._tokens == self._config.eos_token_id) & self._stops_at_eos)
        torch.all(self._ended, dim=0, keepdim=True, out=self._all_ended)
        self._position.add_(1)


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
