"""Vectors to token ids by beam search: the rules of transformers' `generate(num_beams=K, early_stopping=False)`.

Each region has K beams, captions that have not ended. A step weighs the 2 K likeliest continuations of them all: what
ends among the first K is finished, and the K likeliest that go on are the next beams. A finished caption's score is the
sum of its log-probabilities over its length to the power of the length penalty. A region is done when K captions have
finished and its likeliest beam, were it to end as it is, would not be among the best K; or when the steps are used up,
where every beam ends. Its caption is the finished one of the best score.

Shapes: R regions, K beams, B beams that a region has (1 before the first step, K after it), P positions (the most
steps), D vector width, V ids that have text.
"""

from __future__ import annotations

import math
from numbers import Integral, Real

import torch
from torch import Tensor

from runtime.backends import Engine
from runtime.bundle import DecoderSettings
from runtime.decoding.greedy import Cache, Decoded, decode_in_batches
from runtime.errors import PatchcaptionError
from runtime.options import Progress

_MOST_BEAMS = 256
"""One region's beams are then a whole batch."""
_MOST_PENALTY = 10
"""Either way: beyond it, scores leave what float32 tells apart."""
_LARGEST_BLOCK = 512
"""Of the vocabulary, in looking for the likeliest continuations: about the square root of a published one."""


def check_beams(beams: int, length_penalty: float = 1.0) -> None:
    """
    Raises:
        PatchcaptionError: one of them is not what `beam_search` takes.
    """
    if not isinstance(beams, Integral) or not 1 <= beams <= _MOST_BEAMS:
        raise PatchcaptionError(f"beams: expected a whole number from 1 to {_MOST_BEAMS}, got {beams!r}")
    if not isinstance(length_penalty, Real) or not abs(length_penalty) <= _MOST_PENALTY:
        raise PatchcaptionError(
            f"length_penalty: expected a number from -{_MOST_PENALTY} to {_MOST_PENALTY}, got {length_penalty!r}"
        )


def beam_search(
    engine: Engine,
    settings: DecoderSettings,
    vectors: Tensor,
    beams: int,
    length_penalty: float = 1.0,
    progress: Progress | None = None,
) -> Decoded:
    """The best caption that K = ``beams`` beams find for each region vector (R, D) on the engine's device.

    Equal vectors are decoded once.

    Args:
        engine: the bundle's beam decoder.
        length_penalty: 0 ranks finished captions by their log-probability, more favours longer ones.
        progress: told how many of R captions are done, after each batch of them.

    Raises:
        PatchcaptionError: the decoder has fewer than 2 K ids to choose from.
    """

    def search_batch(batch: Tensor) -> tuple[Tensor, Tensor]:
        return _search_batch(engine, settings, batch, int(beams), float(length_penalty))

    return decode_in_batches(search_batch, vectors, settings, int(beams), progress)


def _search_batch(
    engine: Engine, settings: DecoderSettings, vectors: Tensor, beams: int, length_penalty: float
) -> tuple[Tensor, Tensor]:
    """The tokens (R, P), filled up with end tokens, and the sums of log-probabilities (R,)."""
    regions, device = len(vectors), vectors.device
    finished = _Finished(regions, beams, settings, device)
    cache = Cache(settings, regions * beams, device)
    cache.take(torch.arange(regions, device=device))
    places = torch.arange(regions, device=device)  # of the regions that are not done
    sums = torch.zeros(regions, 1, device=device)  # of the beams' log-probabilities (R, B)
    ids = torch.full((regions, 1, settings.steps), settings.end_id, device=device)  # of the beams (R, B, P)
    for step in range(settings.steps):
        first_rows = sums.shape[1] * torch.arange(len(sums), device=device)[:, None]
        log_probabilities = _step(engine, cache, vectors[places], ids[:, :, step - 1], step)
        sums, parents, tokens = _likeliest(log_probabilities, sums, 2 * beams)
        ids = _of_beams(ids, parents)
        ids[:, :, step] = tokens
        ends = (tokens == settings.end_id) | (step == settings.steps - 1)
        divisor = (step + 1) ** length_penalty
        scores = (sums / divisor).masked_fill(~ends, -math.inf)
        finished.add(places, ids[:, :beams], sums[:, :beams], scores[:, :beams])
        sums, chosen = sums.masked_fill(ends, -math.inf).topk(beams)
        going = torch.nonzero(sums[:, 0] / divisor > finished.worst(places))[:, 0]
        if len(going) == 0:
            break
        # A region that is done leaves at once: the cache is put in another order anyway.
        cache.take((first_rows + parents.gather(1, chosen))[going].flatten())
        places, sums, ids = places[going], sums[going], _of_beams(ids, chosen)[going]
    return finished.ids, finished.sums


def _step(engine: Engine, cache: Cache, vectors: Tensor, tokens: Tensor, step: int) -> Tensor:
    """The log-probabilities (R, B, V) of what follows ``tokens`` (R, B), the beams' last ids; not read at step 0."""
    having = tokens.shape[1]
    inputs = {
        "vectors": vectors.repeat_interleave(having, dim=0),
        "tokens": tokens.flatten().contiguous(),
        "step": torch.tensor([step], device=vectors.device),
    }
    out = engine.run(inputs | cache.inputs())
    cache.add(out)
    return out["all_log_probabilities"].unflatten(0, (-1, having))


class _Finished:
    """The scores of the K best finished captions of each region, and the best one itself: its ids and their sum."""

    def __init__(self, regions: int, beams: int, settings: DecoderSettings, device: torch.device) -> None:
        self.ids = torch.full((regions, settings.steps), settings.end_id, device=device)
        self.sums = torch.zeros(regions, device=device)
        self._scores = torch.full((regions, beams), -math.inf, device=device)  # the best first

    def add(self, places: Tensor, ids: Tensor, sums: Tensor, scores: Tensor) -> None:
        """Takes captions (R, K, P), their sums and scores (R, K) of the regions at ``places``.

        The score of what has not ended is -inf.
        """
        best, which = scores.max(dim=1)
        better = torch.nonzero(best > self._scores[places, 0])[:, 0]
        self.ids[places[better]] = ids[better, which[better]]
        self.sums[places[better]] = sums[better, which[better]]
        self._scores[places] = torch.cat([self._scores[places], scores], dim=1).topk(scores.shape[1]).values

    def worst(self, places: Tensor) -> Tensor:
        """The lowest score (R,) that stays among the best K; -inf where fewer have finished."""
        return self._scores[places, -1]


def _likeliest(log_probabilities: Tensor, sums: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """The ``count`` likeliest continuations of the beams of each region, the likeliest first.

    In two steps, the best blocks of the vocabulary and the best in them: to sort a whole row takes many times as long.

    Args:
        log_probabilities: of each id after each beam (R, B, V).
        sums: of the beams so far (R, B).

    Returns:
        their sums, the number of their beam, and their last ids, (R, count) each.
    """
    words = log_probabilities.shape[2]
    if words < count:
        raise PatchcaptionError(f"beams: expected at most {words // 2}, half of the decoder's words, got {count // 2}")
    enough = min(_LARGEST_BLOCK, words // count)
    block = max(width for width in range(1, enough + 1) if words % width == 0)
    blocks = log_probabilities.unflatten(2, (-1, block))
    in_beam = blocks.shape[2]
    of_blocks = blocks.amax(dim=3) + sums[:, :, None]
    chosen = of_blocks.flatten(1).topk(count).indices
    inside = _of_beams(blocks.flatten(1, 2), chosen) + sums.gather(1, chosen // in_beam)[:, :, None]
    best, places = inside.flatten(1).topk(count)
    chosen = chosen.gather(1, places // block)
    return best, chosen // in_beam, chosen % in_beam * block + places % block


def _of_beams(values: Tensor, chosen: Tensor) -> Tensor:
    """The rows ``chosen`` (R, n) of each region's ``values`` (R, m, width), as (R, n, width)."""
    return values.gather(1, chosen[:, :, None].expand(-1, -1, values.shape[2]))
