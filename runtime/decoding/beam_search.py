"""Beam search by the rules of transformers' `generate(num_beams=K, early_stopping=False)`.

Each region has K beams, captions that have not ended. A step ranks the 2 K likeliest continuations of them all: those
among the first K that end are finished, and the K likeliest that do not are the next beams. A finished caption's score
is the sum of its log-probabilities divided by its length to the power of the length penalty. A region is done when K
captions have finished and its likeliest beam, ended as it is, would not be among the best K; or when all steps are
used, where every beam ends. Its caption is the finished one with the best score.

Shapes: R regions, K beams, B beams that a region has (1 before the first step, K after it), P positions (the most
steps), D vector width, V tokens that have text.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from runtime.backends import Engine
from runtime.bundle import DecoderConfig
from runtime.decoding.batches import TokenSequences, decode_in_batches, is_end
from runtime.decoding.state import VectorState, next_log_probs
from runtime.errors import PatchcaptionError
from runtime.options import ProgressCallback

_MAX_BLOCK = 512
"""Tokens of the vocabulary searched at once for the likeliest continuations: about the root of a published one."""


def beam_search(
    engine: Engine,
    config: DecoderConfig,
    vectors: Tensor,
    beams: int,
    length_penalty: float = 1.0,
    progress: ProgressCallback | None = None,
) -> TokenSequences:
    """Return the best caption that K = ``beams`` beams find for each vector (R, D) on the engine's device.

    Equal vectors are decoded once.

    Args:
        engine: the bundle's beam decoder.
        length_penalty: 0 ranks finished captions by their log-probability, more favours longer ones.
        progress: called after each batch with how many of R captions are done.

    Raises:
        PatchcaptionError: the decoder has fewer than 2 K tokens to choose from.
    """

    def search_batch(batch: Tensor) -> tuple[Tensor, Tensor]:
        return _search_batch(engine, config, batch, int(beams), float(length_penalty))

    return decode_in_batches(search_batch, vectors, config, int(beams), progress)


def _search_batch(
    engine: Engine, config: DecoderConfig, vectors: Tensor, beams: int, length_penalty: float
) -> tuple[Tensor, Tensor]:
    """Return the tokens (R, P), padded with end tokens, and the sums of log-probabilities (R,)."""
    regions, device = len(vectors), vectors.device
    finished = _FinishedCaptions(regions, beams, config, device)
    state = VectorState(config, vectors, beams)
    indices = torch.arange(regions, device=device)  # of the regions that are not done
    sums = torch.zeros(regions, 1, device=device)  # of the beams' log-probabilities (R, B)
    ids = torch.full((regions, 1, config.max_new_tokens), config.eos_token_id, device=device)  # of the beams (R, B, P)
    for step in range(config.max_new_tokens):
        first_rows = sums.shape[1] * torch.arange(len(sums), device=device)[:, None]
        last_tokens = ids[:, :, step - 1].flatten()  # not read at step 0
        log_probs = next_log_probs(engine, state, last_tokens, step).unflatten(0, (-1, sums.shape[1]))
        sums, parents, tokens = top_continuations(log_probs, sums, 2 * beams)
        ids = _gather_beams(ids, parents)
        ids[:, :, step] = tokens
        ends = is_end(tokens, config.eos_token_ids) | (step == config.max_new_tokens - 1)
        divisor = (step + 1) ** length_penalty
        scores = (sums / divisor).masked_fill(~ends, -math.inf)
        finished.add(indices, ids[:, :beams], sums[:, :beams], scores[:, :beams])
        sums, chosen = sums.masked_fill(ends, -math.inf).topk(beams)
        active = torch.nonzero(sums[:, 0] / divisor > finished.kth_score(indices))[:, 0]
        if len(active) == 0:
            break
        # A region that is done leaves at once: the cache is reordered anyway.
        state.select_rows((first_rows + parents.gather(1, chosen))[active].flatten())
        indices, sums, ids = indices[active], sums[active], _gather_beams(ids, chosen)[active]
    return finished.ids, finished.sums


class _FinishedCaptions:
    """The scores of each region's K best finished captions, and the best one itself: its ids and their sum."""

    def __init__(self, regions: int, beams: int, config: DecoderConfig, device: torch.device) -> None:
        self.ids = torch.full((regions, config.max_new_tokens), config.eos_token_id, device=device)
        self.sums = torch.zeros(regions, device=device)
        self._scores = torch.full((regions, beams), -math.inf, device=device)  # the best first

    def add(self, indices: Tensor, ids: Tensor, sums: Tensor, scores: Tensor) -> None:
        """Add captions (R, K, P), their sums and scores (R, K), of the regions at ``indices``.

        The score of a caption that has not ended is -inf.
        """
        best, which = scores.max(dim=1)
        better = torch.nonzero(best > self._scores[indices, 0])[:, 0]
        self.ids[indices[better]] = ids[better, which[better]]
        self.sums[indices[better]] = sums[better, which[better]]
        self._scores[indices] = torch.cat([self._scores[indices], scores], dim=1).topk(scores.shape[1]).values

    def kth_score(self, indices: Tensor) -> Tensor:
        """Return the lowest score (R,) among the best K; -inf where fewer have finished."""
        return self._scores[indices, -1]


def top_continuations(log_probs: Tensor, sums: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the ``count`` likeliest continuations of the beams of each region, the likeliest first.

    In two steps, the best blocks of the vocabulary and the best tokens in them: sorting whole rows is far slower.

    Args:
        log_probs: of each token after each beam (R, B, V).
        sums: of the beams so far (R, B).

    Returns:
        their sums, the indices of their beams, and their last ids, (R, count) each.
    """
    vocab_size = log_probs.shape[2]
    if vocab_size < count:
        raise PatchcaptionError(
            f"beams: expected at most {vocab_size // 2}, half of the decoder's words, got {count // 2}"
        )
    max_width = min(_MAX_BLOCK, vocab_size // count)
    width = max(width for width in range(1, max_width + 1) if vocab_size % width == 0)
    blocks = log_probs.unflatten(2, (-1, width))
    blocks_per_beam = blocks.shape[2]
    block_maxima = blocks.amax(dim=3) + sums[:, :, None]
    chosen = block_maxima.flatten(1).topk(count).indices
    inside = _gather_beams(blocks.flatten(1, 2), chosen) + sums.gather(1, chosen // blocks_per_beam)[:, :, None]
    best, indices = inside.flatten(1).topk(count)
    chosen = chosen.gather(1, indices // width)
    return best, chosen // blocks_per_beam, chosen % blocks_per_beam * width + indices % width


def _gather_beams(values: Tensor, chosen: Tensor) -> Tensor:
    """Return the rows ``chosen`` (R, n) of each region's ``values`` (R, m, width), as (R, n, width)."""
    return values.gather(1, chosen[:, :, None].expand(-1, -1, values.shape[2]))
