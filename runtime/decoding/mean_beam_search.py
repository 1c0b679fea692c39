"""Beam search by the rules of ViECap (published-system.md, section 18): the mean log-probability ranks at every step.

Each region has K beams. A beam that has ended stays among them and competes with the continuations of the others, so
the search goes on until all K have ended, or all steps are used. Sums of log-probabilities are compared divided by the
number of tokens to the power of the length penalty, which is 1 as published.

Shapes: R regions, K beams, B beams that a region has (1 before the first step, K after it), P most tokens, V
vocabulary.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from runtime.backends import Engine
from runtime.bundle import DecoderConfig
from runtime.decoding.batches import is_end
from runtime.decoding.beam_search import top_continuations
from runtime.decoding.state import DecodingState, next_log_probs


@dataclass(frozen=True, eq=False)
class RankedBeams:
    """The K beams of R regions, the best first.

    Attributes:
        ids: their tokens (R, K, P), padded with end tokens.
        sums: of their log-probabilities (R, K).
        lengths: their numbers of tokens (R, K).
    """

    ids: Tensor
    sums: Tensor
    lengths: Tensor

    @property
    def best(self) -> tuple[Tensor, Tensor]:
        """The tokens (R, P) and sums (R,) of each region's best."""
        return self.ids[:, 0], self.sums[:, 0]


def mean_beam_search(
    engine: Engine, config: DecoderConfig, state: DecodingState, regions: int, beams: int, length_penalty: float = 1.0
) -> RankedBeams:
    """Return K = ``beams`` beams for each of R captions that begin.

    Args:
        engine: the bundle's beam decoder.
        state: R captions, with room for K of each.
    """
    search = _Search(config, state, regions, beams, length_penalty)
    for step in range(config.max_new_tokens):
        log_probs = next_log_probs(engine, state, search.last_tokens(step), step)
        search.advance(log_probs.unflatten(0, (-1, search.sums.shape[1])), step)
        if not len(search.indices):
            break
    return search.result()


class _Search:
    """The beams of all regions while they are searched; regions whose beams have all ended leave the batch.

    Attributes:
        indices: of the regions that are not done (r,).
        sums: of the log-probabilities of their beams (r, B).
    """

    def __init__(
        self, config: DecoderConfig, state: DecodingState, regions: int, beams: int, length_penalty: float
    ) -> None:
        device = state.device
        self._config, self._state, self._beams, self._penalty = config, state, beams, length_penalty
        self.indices = torch.arange(regions, device=device)
        self.sums = torch.zeros(regions, 1, device=device)
        self._lengths = torch.zeros(regions, 1, dtype=torch.int64, device=device)
        self._ended = torch.zeros(regions, 1, dtype=torch.bool, device=device)
        shape = (regions, 1, config.max_new_tokens)
        self._ids = torch.full(shape, config.eos_token_id, device=device)
        self._done = RankedBeams(
            self._ids.repeat(1, beams, 1), self.sums.repeat(1, beams), self._lengths.repeat(1, beams)
        )

    def last_tokens(self, step: int) -> Tensor:
        """Return the tokens (r * B,) that were chosen before a step."""
        return self._ids[:, :, step - 1].flatten()

    def advance(self, log_probs: Tensor, step: int) -> None:
        """Choose the next beams by the log-probabilities (r, B, V) of their continuations."""
        parents, tokens, sums = self._best_continuations(log_probs)
        was_ended = self._ended.gather(1, parents)
        self.sums = sums
        self._lengths = self._lengths.gather(1, parents) + (~was_ended).long()
        self._ids = self._ids.gather(1, parents[:, :, None].expand(-1, -1, self._ids.shape[2]))
        self._ids[:, :, step] = tokens.masked_fill(was_ended, self._config.eos_token_id)
        self._ended = was_ended | is_end(tokens, self._config.eos_token_ids)
        first_rows = log_probs.shape[1] * torch.arange(len(parents), device=parents.device)[:, None]
        active = torch.nonzero(~self._ended.all(dim=1))[:, 0]
        done = torch.nonzero(self._ended.all(dim=1))[:, 0]
        self._finish(done)
        self._state.select_rows((first_rows + parents)[active].flatten())
        self._keep(active)

    def result(self) -> RankedBeams:
        """Return the beams of all regions, those that used all steps among them, the best first."""
        self._finish(torch.arange(len(self.indices), device=self.indices.device))
        done = self._done
        order = (done.sums / done.lengths**self._penalty).argsort(dim=1, descending=True, stable=True)
        ids = done.ids.gather(1, order[:, :, None].expand_as(done.ids))
        return RankedBeams(ids, done.sums.gather(1, order), done.lengths.gather(1, order))

    def _best_continuations(self, log_probs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the beams, last tokens and sums (r, K) of the best; of a beam that has ended only itself is one.

        All continuations of one beam are as long, so the best K of each are enough.
        """
        rows, width, _ = log_probs.shape
        best, _, tokens = top_continuations(log_probs.flatten(0, 1)[:, None], self.sums.view(-1, 1), self._beams)
        best, tokens = (one.view(rows, width, self._beams) for one in (best, tokens))
        itself = torch.full_like(best, -math.inf)
        itself[:, :, 0] = self.sums
        candidates = torch.where(self._ended[:, :, None], itself, best)
        lengths = (self._lengths + (~self._ended).long())[:, :, None]
        chosen = (candidates / lengths**self._penalty).flatten(1).topk(self._beams).indices
        return chosen // self._beams, tokens.flatten(1).gather(1, chosen), candidates.flatten(1).gather(1, chosen)

    def _finish(self, rows: Tensor) -> None:
        if len(rows) == 0:
            return
        regions = self.indices[rows]
        self._done.ids[regions], self._done.sums[regions] = self._ids[rows], self.sums[rows]
        self._done.lengths[regions] = self._lengths[rows]

    def _keep(self, active: Tensor) -> None:
        self.indices, self.sums, self._ids = self.indices[active], self.sums[active], self._ids[active]
        self._lengths, self._ended = self._lengths[active], self._ended[active]
