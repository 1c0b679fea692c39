"""Vectors to token ids: the decoder engine, stepped with a key-value cache until every caption has ended.

Shapes: R regions, D vector width, L layers, H heads, P positions (the most steps), d head width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from threading import Lock

import torch
from torch import Tensor

from runtime.backends import Engine
from runtime.backends.base import BindableEngine
from runtime.bundle import DecoderSettings
from runtime.decoding.gpu_greedy import ResidentDecoder
from runtime.options import Progress

_CACHE_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
_DROPPED_SHARE = 0.25
"""Ended captions leave the batch when they are so many of it: leaving copies the cache of all others."""


@dataclass(frozen=True, eq=False)
class Decoded:
    """The tokens of R captions.

    Attributes:
        ids: the chosen tokens of each caption, its end token included where it was reached within the steps.
        log_probabilities: the sum over a caption's tokens, its end token included (R,); or over all steps, as asked.
    """

    ids: list[list[int]]
    log_probabilities: list[float]


class Cache:
    """The keys and values of captions, a position longer with each step.

    Captions leave and change places where they lie, so it never takes more memory than for ``rows`` of them.
    """

    def __init__(self, settings: DecoderSettings, rows: int, device: torch.device) -> None:
        self._places = [f"{kind}_{layer}" for layer in range(settings.layers) for kind in ("key", "value")]
        shape = (rows, settings.heads, settings.steps, settings.head_width)
        # One by one: in one piece it would be so large that the system takes it back and zeroes it page by page.
        dtype = _CACHE_DTYPES[settings.cache]
        self._entries = [torch.zeros(shape, dtype=dtype, device=device) for _ in self._places]
        self._rows, self._filled = rows, 0

    def inputs(self) -> dict[str, Tensor]:
        """What the decoder engine takes: for each layer its keys and its values, (R, H, P, d) each."""
        used = (entries[: self._rows] for entries in self._entries)
        return {f"past_{place}": entries for place, entries in zip(self._places, used, strict=True)}

    def add(self, outputs: Mapping[str, Tensor]) -> None:
        """Takes a step's entries (R, H, 1, d) out of what the engine gave."""
        for place, entries in zip(self._places, self._entries, strict=True):
            entries[: self._rows, :, self._filled] = outputs[f"new_{place}"][:, :, 0]
        self._filled += 1

    def take(self, rows: Tensor) -> None:
        """Row i becomes what row ``rows[i]`` was, for int64 ``rows`` (R,); no other is in use any more."""
        self._rows = len(rows)
        moved = torch.nonzero(rows != torch.arange(len(rows), device=rows.device))[:, 0]
        for entries in self._entries:
            filled = entries[:, :, : self._filled]
            filled[moved] = filled[rows[moved]]


class GreedyDecoder:
    """Decodes with one engine, taking the likeliest token at each step.

    For an engine that works in memory of our own it keeps that memory, and the graphs captured over it, for each of a
    few numbers of rows.
    """

    def __init__(self, engine: Engine, settings: DecoderSettings) -> None:
        self._engine, self._settings = engine, settings
        self._resident: dict[int, ResidentDecoder] = {}
        self._decoding = Lock()

    def decode(
        self,
        vectors: Tensor,
        past_end: bool = False,
        at_most: int | None = None,
        progress: Progress | None = None,
    ) -> Decoded:
        """Captions for region vectors (R, D) on the engine's device; equal vectors are decoded once.

        Args:
            past_end: take every caption through all steps and count the log-probabilities of what comes after its end
                token too, as the published score does (SPEC section 6); the ids stay the same.
            at_most: stop after that many steps; None for as many as the decoder has positions.
            progress: told how many of R captions are done, after each batch of them.
        """
        steps = min(self._settings.steps, at_most or self._settings.steps)

        def decode_batch(batch: Tensor) -> tuple[Tensor, Tensor]:
            if isinstance(self._engine, BindableEngine):
                with self._decoding:  # the memory is one
                    return self._resident_for(self._engine, batch).decode(batch, past_end, steps)
            return _decode_batch(self._engine, self._settings, batch, past_end, steps)

        return decode_in_batches(decode_batch, vectors, self._settings, progress=progress)

    def captured(self) -> list[str]:
        """For each number of rows that a device has decoded, why its step is not one CUDA graph; "" where it is."""
        return [resident.step_work.why_not for resident in self._resident.values()]

    def _resident_for(self, engine: BindableEngine, batch: Tensor) -> ResidentDecoder:
        rows = next(rows for rows in self._settings.batches if rows >= len(batch))
        if rows not in self._resident:
            self._resident[rows] = ResidentDecoder(engine, self._settings, rows, batch.shape[1], batch.device)
        return self._resident[rows]


def decode(
    engine: Engine,
    settings: DecoderSettings,
    vectors: Tensor,
    past_end: bool = False,
    at_most: int | None = None,
    progress: Progress | None = None,
) -> Decoded:
    """`GreedyDecoder.decode`, once."""
    return GreedyDecoder(engine, settings).decode(vectors, past_end, at_most, progress)


def decode_in_batches(
    decode_batch: Callable[[Tensor], tuple[Tensor, Tensor]],
    vectors: Tensor,
    settings: DecoderSettings,
    rows_each: int = 1,
    progress: Progress | None = None,
) -> Decoded:
    """The captions of vectors (R, D), equal ones decoded once.

    Args:
        decode_batch: vectors to tokens (R, P), filled up with end tokens, and sums of log-probabilities (R,).
        rows_each: how many rows the engine gets for one vector.
        progress: told how many of R captions are done, after each batch of them.
    """
    if len(vectors) == 0:
        return Decoded([], [])
    different, places = torch.unique(vectors, dim=0, return_inverse=True)
    parts: list[tuple[Tensor, Tensor]] = []
    done = 0
    for batch in different.split(max(1, settings.batches[-1] // rows_each)):
        parts.append(decode_batch(batch))
        done += len(batch)
        if progress is not None:
            progress(int((places < done).sum()), len(vectors))
    ids, sums = (torch.cat(found)[places].tolist() for found in zip(*parts, strict=True))
    return Decoded([_up_to_end(row, settings.end_id) for row in ids], sums)


def _decode_batch(
    engine: Engine, settings: DecoderSettings, vectors: Tensor, past_end: bool, steps: int
) -> tuple[Tensor, Tensor]:
    """The tokens (R, steps), filled up with end tokens, and the sums of log-probabilities (R,)."""
    rows, device = len(vectors), vectors.device
    ids = torch.full((rows, steps), settings.end_id, dtype=torch.int64, device=device)
    sums = torch.zeros(rows, device=device)
    cache = Cache(settings, rows, device)
    tokens = torch.zeros(rows, dtype=torch.int64, device=device)
    places = torch.arange(rows, device=device)  # of the rows that are still in the batch
    ended = torch.zeros(rows, dtype=torch.bool, device=device)
    for step in range(steps):
        inputs = {"vectors": vectors, "tokens": tokens, "step": torch.tensor([step], device=device)}
        out = engine.run(inputs | cache.inputs())
        cache.add(out)
        tokens = out["next_tokens"]
        ids[places, step] = tokens.masked_fill(ended, settings.end_id)
        sums[places] += out["log_probabilities"].masked_fill(ended, 0.0)
        if past_end:
            continue
        ended |= tokens == settings.end_id
        going = torch.nonzero(~ended)[:, 0]
        if len(going) == 0:
            break
        if len(going) <= (1 - _DROPPED_SHARE) * len(ended):
            vectors, tokens, places, ended = vectors[going], tokens[going], places[going], ended[going]
            cache.take(going)
    return ids, sums


def _up_to_end(ids: list[int], end_id: int) -> list[int]:
    return ids[: ids.index(end_id) + 1] if end_id in ids else ids
