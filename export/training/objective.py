"""The loss of a decoder that is trained on captions (published-system.md, section 24).

Shapes: B captions of a batch, L tokens of a caption, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

IGNORED = -100
"""The target that counts for nothing: what follows a caption's end."""


@dataclass(frozen=True, eq=False)
class TokenSums:
    """Sums over the tokens of some captions.

    Attributes:
        loss: of their losses (), which gradients go through.
        correct: of those that the decoder would choose ().
        tokens: the number of tokens that count ().
        whole: the number of captions of which it would choose every token ().
    """

    loss: Tensor
    correct: Tensor
    tokens: Tensor
    whole: Tensor


def score_tokens(logits: Tensor, targets: Tensor, label_smoothing: float) -> TokenSums:
    """Score logits (B, L, V) against the tokens (B, L) that should follow; `IGNORED` ones count for nothing.

    The loss of a token t is ``(1 - s) * (-log p_t) + s * mean over V of (-log p)``, s the label smoothing.
    """
    is_target = targets != IGNORED
    loss = F.cross_entropy(
        logits.flatten(0, 1).float(),
        targets.flatten(),
        ignore_index=IGNORED,
        label_smoothing=label_smoothing,
        reduction="sum",
    )
    with torch.no_grad():
        is_right = logits.argmax(-1) == targets
        return TokenSums(loss, is_right.sum(), is_target.sum(), (is_right | ~is_target).all(1).sum())
