"""The choice of the next token from logits, in a form that runtimes do fast.

Shapes: R regions, V vocabulary (padded for GPUs: see `export.models.gpt2`).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

_MAX_BLOCK = 512
"""The most tokens that are searched at once for the best: about the square root of a published vocabulary."""


class NextToken(nn.Module):
    """Chooses among the tokens that have text.

    Args:
        text_vocab_size: ids from here on have no text; they are never chosen but count in the log-probabilities, as
            published.
    """

    block_offsets: Tensor

    def __init__(self, text_vocab_size: int) -> None:
        super().__init__()
        self.text_vocab_size = text_vocab_size
        self.block_size = max(size for size in range(1, _MAX_BLOCK + 1) if text_vocab_size % size == 0)
        # A row, not a list of numbers: the latter ONNX's shape inference takes for a shape.
        self.register_buffer("block_offsets", torch.arange(self.block_size)[None], persistent=False)

    def forward(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Return the token (R,) with the largest of ``logits`` (R, V), the first of equals, and its log-probability.

        In two steps, the best block and the best in it: runtimes reduce a long row well, but few find its index well
        (OpenVINO takes 10 times as long for it as for the matrix product before it).
        """
        blocks = logits[:, : self.text_vocab_size].unflatten(-1, (-1, self.block_size))
        best, block = blocks.amax(dim=-1).max(dim=-1)
        first = block * self.block_size
        inside = torch.gather(logits, 1, first[:, None] + self.block_offsets)
        return first + inside.argmax(dim=-1), best - log_sum_exp(logits)

    def log_probs(self, logits: Tensor) -> Tensor:
        """Return the log-probability of each token that has text (R, text vocabulary)."""
        return logits[:, : self.text_vocab_size] - log_sum_exp(logits)[:, None]


def log_sum_exp(logits: Tensor) -> Tensor:
    """Return the log of the sum of exponentials over the last axis.

    Not torch.logsumexp, which becomes a chain of guards against infinities in ONNX.
    """
    largest = logits.amax(dim=-1)
    return largest + torch.log(torch.exp(logits - largest[:, None]).sum(dim=-1))
