"""Sampling from the nucleus: the likeliest tokens that together have some probability (Holtzman et al. 2020).

A token is dropped if those before it, the likeliest first, have more than ``top_p`` together; the first is never.

Shapes: R captions, P most tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

from runtime.backends import Engine
from runtime.bundle import DecoderConfig
from runtime.decoding.batches import is_end
from runtime.decoding.state import DecodingState, next_log_probs
from runtime.options import DecodingOptions

ChooseTokens: TypeAlias = Callable[[Tensor, Tensor, int], Tensor]
"""Chooses the next tokens (r,) of log-probabilities (r, V): of which captions (r,) of the batch, at which step."""


class NucleusSampler:
    """Draws tokens from the nucleus, each caption as if it were alone.

    At each step all captions are drawn by one random number, so that a caption depends on its vector and the seed, not
    on what it is decoded together with.

    Args:
        seed: other seeds give other captions.
    """

    def __init__(self, top_p: float, temperature: float, seed: int, steps: int) -> None:
        self._top_p, self._temperature = top_p, temperature
        self._draws = torch.rand(steps, generator=torch.Generator().manual_seed(seed)).tolist()

    @classmethod
    def of(cls, options: DecodingOptions, steps: int) -> NucleusSampler:
        """Return the sampler that some options ask for, for captions of at most so many tokens."""
        assert options.top_p is not None  # who draws nothing has no sampler
        return cls(options.top_p, options.temperature, options.seed, steps)

    def __call__(self, log_probs: Tensor, captions: Tensor, step: int) -> Tensor:  # noqa: ARG002  # as ChooseTokens
        tokens, probs = nucleus(log_probs, self._top_p, self._temperature)
        cumulative = probs.cumsum(dim=1)
        threshold = self._draws[step] * cumulative[:, -1:]
        drawn = (cumulative <= threshold).sum(dim=1, keepdim=True).clamp(max=tokens.shape[1] - 1)
        return tokens.gather(1, drawn)[:, 0]


def nucleus(log_probs: Tensor, top_p: float, temperature: float) -> tuple[Tensor, Tensor]:
    """Return tokens (r, V), the likeliest first, and their probabilities: 0 outside of the nucleus."""
    scaled, tokens = (log_probs / temperature).sort(dim=1, descending=True)
    probs = torch.softmax(scaled, dim=1)
    dropped = torch.zeros_like(probs, dtype=torch.bool)
    dropped[:, 1:] = probs.cumsum(dim=1)[:, :-1] > top_p
    probs = probs.masked_fill(dropped, 0.0)
    return tokens, probs / probs.sum(dim=1, keepdim=True)


def decode_chosen(
    engine: Engine, config: DecoderConfig, state: DecodingState, rows: int, choose: ChooseTokens
) -> tuple[Tensor, Tensor]:
    """Decode R captions token by token as ``choose`` says.

    Args:
        engine: the bundle's beam decoder.
        state: R captions that begin.

    Returns:
        the tokens (R, P), padded with end tokens, and the sums of their log-probabilities (R,), at temperature 1.
    """
    device, steps = state.device, config.max_new_tokens
    ids = torch.full((rows, steps), config.eos_token_id, dtype=torch.int64, device=device)
    sums = torch.zeros(rows, device=device)
    captions = torch.arange(rows, device=device)  # those that have not ended
    tokens = torch.zeros(rows, dtype=torch.int64, device=device)
    for step in range(steps):
        log_probs = next_log_probs(engine, state, tokens, step)
        tokens = choose(log_probs, captions, step)
        ids[captions, step] = tokens
        sums[captions] += log_probs.gather(1, tokens[:, None])[:, 0]
        active = torch.nonzero(~is_end(tokens, config.eos_token_ids))[:, 0]
        if len(active) == 0:
            break
        if len(active) < len(captions):
            tokens, captions = tokens[active], captions[active]
            state.select_rows(active)
    return ids, sums
