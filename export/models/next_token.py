"""The choice of the next token from logits, in a form that runtimes do fast.

Shapes: R regions, V vocabulary (padded for some devices: see `export.models.gpt2`), E decoder width, C candidates.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_MAX_BLOCK = 512
"""The most tokens that are searched at once for the best: about the square root of a published vocabulary."""
CANDIDATES = 8
"""Tokens among which the best is, by logits of a vocabulary in 8 bits: it was among the best 3 of every step of the
demo's and of made-up decoders."""


class NextToken(nn.Module):
    """Chooses among the tokens that have text.

    Args:
        text_vocab_size: ids from here on have no text; they are never chosen but count in the log-probabilities, as
            published.

    Attributes:
        recomputes: whether logits are of a rounded vocabulary, so that those of the best tokens are computed again.
    """

    block_offsets: Tensor

    def __init__(self, text_vocab_size: int) -> None:
        super().__init__()
        self.text_vocab_size, self.recomputes = text_vocab_size, False
        self.block_size = max(size for size in range(1, _MAX_BLOCK + 1) if text_vocab_size % size == 0)
        # A row, not a list of numbers: the latter ONNX's shape inference takes for a shape.
        self.register_buffer("block_offsets", torch.arange(self.block_size)[None], persistent=False)

    def forward(self, logits: Tensor, states: Tensor, vocabulary: Tensor) -> tuple[Tensor, Tensor]:
        """Return the token (R,) with the largest of ``logits`` (R, V), the first of equals, and its log-probability.

        Args:
            states: what the logits are products of with the embeddings of a vocabulary (R, E).
            vocabulary: these embeddings (V, E).
        """
        if self.recomputes:
            return self._best_of_candidates(logits, states, vocabulary)
        best, block = self._block_maxima(logits).max(dim=-1)
        first = block * self.block_size
        inside = torch.gather(logits, 1, first[:, None] + self.block_offsets)
        return first + inside.argmax(dim=-1), best - log_sum_exp(logits)

    def _best_of_candidates(self, logits: Tensor, states: Tensor, vocabulary: Tensor) -> tuple[Tensor, Tensor]:
        """Return the token as by exact logits, and its log-probability, in which only other tokens' are rounded."""
        ids, rounded = self._candidates(logits)
        exact = (F.embedding(ids, vocabulary) * states[:, None]).sum(dim=-1)
        best, place = exact.max(dim=-1)
        largest = logits.amax(dim=-1, keepdim=True)
        error = torch.exp(exact - largest).sum(dim=-1) - torch.exp(rounded - largest).sum(dim=-1)
        total = torch.exp(logits - largest).sum(dim=-1) + error
        return torch.gather(ids, 1, place[:, None]).flatten(), best - (largest[:, 0] + torch.log(total))

    def _candidates(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Return the tokens with the largest ``logits`` (R, V), and these logits, (R, C) both."""
        maxima = self._block_maxima(logits)
        blocks = maxima.topk(min(CANDIDATES, maxima.shape[1]), dim=-1).indices
        ids = (blocks[..., None] * self.block_size + self.block_offsets).flatten(1)
        in_blocks = torch.gather(logits, 1, ids)
        best, places = in_blocks.topk(min(CANDIDATES, in_blocks.shape[1]), dim=-1)
        return torch.gather(ids, 1, places), best

    def _block_maxima(self, logits: Tensor) -> Tensor:
        """Return the largest of each block of ``logits`` (R, V).

        With them the best token is found in two steps, the best block and the best in it: runtimes reduce a long row
        well, but few find its index well (OpenVINO takes 10 times as long for it as for the product before it).
        """
        if logits.shape[1] % self.block_size == 0:  # nothing needs to be copied
            maxima = logits.unflatten(-1, (-1, self.block_size)).amax(dim=-1)
            return maxima[:, : self.text_vocab_size // self.block_size]
        return logits[:, : self.text_vocab_size].unflatten(-1, (-1, self.block_size)).amax(dim=-1)

    def log_probs(self, logits: Tensor) -> Tensor:
        """Return the log-probability of each token that has text (R, text vocabulary)."""
        return logits[:, : self.text_vocab_size] - log_sum_exp(logits)[:, None]


def log_sum_exp(logits: Tensor) -> Tensor:
    """Return the log of the sum of exponentials over the last axis.

    Not torch.logsumexp, which becomes a chain of guards against infinities in ONNX.
    """
    largest = logits.amax(dim=-1)
    return largest + torch.log(torch.exp(logits - largest[:, None]).sum(dim=-1))
