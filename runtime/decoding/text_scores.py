"""The published score of decoders with a prompt: how likely their language model finds a text by itself.

See published-system.md, section 18. Shapes: R texts, P positions of the cache.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from runtime.backends import Engine
from runtime.bundle import DecoderConfig
from runtime.decoding.kv_cache import KvCache
from runtime.decoding.state import PromptState, next_log_probs


def perplexities(
    engine: Engine, config: DecoderConfig, texts: Sequence[Sequence[int]], device: torch.device
) -> list[float]:
    """Return exp(mean of -log p over the tokens after the first) of each of R texts of token ids.

    It is NaN for a text of one token, which nothing comes before, and for one of more than P + 1 tokens.

    Args:
        engine: the bundle's beam decoder.
    """
    most = config.cache_positions + 1
    scored = [index for index, ids in enumerate(texts) if 1 < len(ids) <= most]
    results = [math.nan] * len(texts)
    for start in range(0, len(scored), config.batch_sizes[-1]):
        indices = scored[start : start + config.batch_sizes[-1]]
        sums = _log_probs(engine, config, [texts[index] for index in indices], device)
        for index, total in zip(indices, sums, strict=True):
            results[index] = math.exp(-total / (len(texts[index]) - 1))
    return results


def _log_probs(
    engine: Engine, config: DecoderConfig, texts: Sequence[Sequence[int]], device: torch.device
) -> list[float]:
    """Return the sum of the log-probabilities of each text's tokens after the first."""
    lengths = torch.tensor([len(ids) for ids in texts], device=device)
    longest = int(lengths.max())
    ids = torch.tensor([[*text, *([config.eos_token_id] * (longest - len(text)))] for text in texts], device=device)
    no_prompt = torch.zeros(len(texts), 0, dtype=torch.bool, device=device)
    state = PromptState(None, KvCache(config, len(texts), device), no_prompt)
    sums = torch.zeros(len(texts), dtype=torch.float64, device=device)
    rows = torch.arange(len(texts), device=device)  # the texts that go on
    for step in range(longest - 1):
        log_probs = next_log_probs(engine, state, ids[rows, step], step)
        sums[rows] += log_probs.gather(1, ids[rows, step + 1][:, None])[:, 0].double()
        active = torch.nonzero(lengths[rows] > step + 2)[:, 0]
        if 0 < len(active) < len(rows):
            rows = rows[active]
            state.select_rows(active)
    found: list[float] = sums.tolist()
    return found
