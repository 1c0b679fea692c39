"""Decoding of many vectors in batches: equal vectors once, and their captions in the order asked for.

Shapes: R regions, D vector width, P positions (the most steps).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from runtime.bundle import DecoderConfig
from runtime.errors import BundleError, PatchcaptionError
from runtime.options import ProgressCallback

_MAX_LOG_PROB = 0.5
"""Rounding puts sums of log-probabilities above 0, by much less."""


@dataclass(frozen=True, eq=False)
class TokenSequences:
    """The tokens of R captions.

    Attributes:
        ids: the chosen tokens of each caption, its end token included where it was reached within the steps.
        log_probs: the sum over a caption's tokens, its end token included; or over all steps, as asked.
    """

    ids: list[list[int]]
    log_probs: list[float]


def decode_in_batches(
    decode_batch: Callable[[Tensor], tuple[Tensor, Tensor]],
    vectors: Tensor,
    config: DecoderConfig,
    rows_per_vector: int = 1,
    progress: ProgressCallback | None = None,
) -> TokenSequences:
    """Decode vectors (R, D), equal ones once.

    Args:
        decode_batch: vectors to tokens (R, P), padded with end tokens, and sums of log-probabilities (R,).
        rows_per_vector: rows that the engine gets for one vector.
        progress: called after each batch with how many of R captions are done.
    """
    if len(vectors) == 0:
        return TokenSequences([], [])
    unique_vectors, inverse = torch.unique(vectors, dim=0, return_inverse=True)
    parts: list[tuple[Tensor, Tensor]] = []
    done = 0
    for batch in unique_vectors.split(max(1, config.batch_sizes[-1] // rows_per_vector)):
        parts.append(decode_batch(batch))
        done += len(batch)
        if progress is not None:
            progress(int((inverse < done).sum()), len(vectors))
    ids, sums = (torch.cat(tensors)[inverse].tolist() for tensors in zip(*parts, strict=True))
    _check_range(ids, sums, config)
    return TokenSequences([_truncate_at(row, config.eos_token_ids) for row in ids], sums)


def is_end(tokens: Tensor, eos_token_ids: Sequence[int]) -> Tensor:
    """Return which of some tokens end a caption, as bool of their shape."""
    ended = tokens == eos_token_ids[0]
    for token in eos_token_ids[1:]:
        ended |= tokens == token
    return ended


def _check_range(ids: list[list[int]], sums: list[float], config: DecoderConfig) -> None:
    """Compare what the engine chose with its vocabulary, and what it says of it with the logarithm of a probability.

    Raises:
        PatchcaptionError: the vector of a row is not finite, or the engine is not one of this decoder.
    """
    for row, (chosen, log_prob) in enumerate(zip(ids, sums, strict=True)):
        if math.isnan(log_prob):
            raise PatchcaptionError(f"vectors: row {row}: expected finite numbers: its caption has the score nan")
        unknown = next((token for token in chosen if not 0 <= token < config.vocab_size), None)
        if unknown is not None:
            raise BundleError(
                f"decoder: expected tokens from 0 to {config.vocab_size - 1}, got {unknown}; build the bundle again"
            )
        if log_prob > _MAX_LOG_PROB:
            raise BundleError(
                f"decoder: expected log-probabilities of at most 0, got {log_prob}; build the bundle again"
            )


def _truncate_at(ids: list[int], eos_token_ids: Collection[int]) -> list[int]:
    end = next((index for index, token in enumerate(ids) if token in eos_token_ids), len(ids))
    return ids[: end + 1]
