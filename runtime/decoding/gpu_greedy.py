"""Greedy decoding that stays on the device: vectors go in, captions come out, and no step waits for the host.

Every buffer keeps its place from step to step, so that a step is one piece of work: the engine, and the few lines that
put what it chose where the next step reads it.

Shapes: R captions at once, D vector width, P positions (the most steps), H heads, d head width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from runtime.backends.base import BindableEngine
from runtime.bundle import DecoderSettings

_LOOK_EVERY = 4
"""Steps from one look at whether all captions have ended to the next; up to twice as many are done in vain."""


class ResidentDecoder:
    """Decodes up to R captions at once, always in the same memory.

    Args:
        engine: the decoder.
        rows: R.
        width: D.
        device: the engine's.
    """

    def __init__(
        self, engine: BindableEngine, settings: DecoderSettings, rows: int, width: int, device: torch.device
    ) -> None:
        self.rows, self._settings, self._stream = rows, settings, engine.stream
        places = [f"{kind}_{layer}" for layer in range(settings.layers) for kind in ("key", "value")]
        shape = (rows, settings.heads, settings.steps, settings.head_width)

        def buffer(name: str, *shape: int) -> Tensor:
            return torch.zeros(shape, dtype=engine.dtype(name), device=device)

        self._vectors = buffer("vectors", rows, width)
        self._tokens, self._step = buffer("tokens", rows), buffer("step", 1)
        self._past = [buffer(f"past_{place}", *shape) for place in places]
        self._new = [buffer(f"new_{place}", rows, settings.heads, 1, settings.head_width) for place in places]
        self._next, self._chances = buffer("next_tokens", rows), buffer("log_probabilities", rows)
        self._ids = torch.full((rows, settings.steps), settings.end_id, dtype=torch.int64, device=device)
        self._sums = torch.zeros(rows, device=device)
        self._ended = torch.zeros(rows, dtype=torch.bool, device=device)
        self._stops = torch.ones(1, dtype=torch.bool, device=device)
        self._all_ended = torch.zeros(1, dtype=torch.bool, device=device)
        inputs = {"vectors": self._vectors, "tokens": self._tokens, "step": self._step}
        outputs = {"next_tokens": self._next, "log_probabilities": self._chances}
        self._bound = engine.bind(
            inputs | {f"past_{place}": entries for place, entries in zip(places, self._past, strict=True)},
            outputs | {f"new_{place}": entries for place, entries in zip(places, self._new, strict=True)},
        )
        with torch.inference_mode():
            self.step_work = self._stream.piece(self._advance, self._bound.capture)

    @torch.inference_mode()
    def decode(self, vectors: Tensor, past_end: bool, steps: int) -> tuple[Tensor, Tensor]:
        """The tokens (R, steps), filled up with end tokens, and the sums of log-probabilities (R,).

        Args:
            vectors: (r, D), no more of them than R.
            past_end: count what comes after the end of a caption too.
            steps: at most P.
        """
        rows = len(vectors)
        with self._stream.active():
            self._begin(vectors, past_end)
            looks: list[_Look] = []
            for step in range(steps):
                self.step_work.run()
                if past_end or (step + 1) % _LOOK_EVERY:
                    continue
                # The look before this one: the steps in between keep the device busy while the host waits for it.
                if looks and looks[-1].all_ended():
                    break
                looks.append(_Look(self._all_ended))
            return self._ids[:rows, :steps].clone(), self._sums[:rows].clone()

    def _begin(self, vectors: Tensor, past_end: bool) -> None:
        """The state before the first step. What is left in the cache is finite, and no step reads beyond its own."""
        rows = len(vectors)
        self._vectors[:rows] = vectors
        self._vectors[rows:] = 0
        self._step.zero_()
        self._ids.fill_(self._settings.end_id)
        self._sums.zero_()
        self._ended[:rows] = False
        self._ended[rows:] = True
        self._stops.fill_(not past_end)

    def _advance(self) -> None:
        """One step, in the memory that all steps use."""
        self._bound.run()
        for past, new in zip(self._past, self._new, strict=True):
            past.index_copy_(2, self._step, new)
        self._tokens.copy_(self._next)
        chosen = self._tokens.masked_fill(self._ended, self._settings.end_id)
        self._ids.index_copy_(1, self._step, chosen[:, None])
        self._sums.add_(self._chances.masked_fill(self._ended, 0.0))
        self._ended.logical_or_((self._tokens == self._settings.end_id) & self._stops)
        torch.all(self._ended, dim=0, keepdim=True, out=self._all_ended)
        self._step.add_(1)


class _Look:
    """A copy of a flag on its way to the host."""

    def __init__(self, flag: Tensor) -> None:
        self._arrived: torch.cuda.Event | None = None
        self._copy = torch.empty(1, dtype=torch.bool, pin_memory=flag.is_cuda)
        self._copy.copy_(flag, non_blocking=True)
        if flag.is_cuda:
            self._arrived = torch.cuda.Event()
            self._arrived.record()

    def all_ended(self) -> bool:
        """Waits until the copy is there."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return bool(self._copy)
