"""The loss of a training and its learning rate, against tables that were worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from export.training.objective import IGNORED, score_tokens
from export.training.schedule import rate_factor

BIT = math.log(2)
LOGITS = torch.tensor([0.5, 0.25, 0.125, 0.125]).log() + 7  # logits know no offset; in bits: 1, 2, 3, 3
"""Logits of 4 tokens, which cost 1, 2, 3 and 3 bits; their mean is 2.25."""


def test_tokens_are_scored_as_worked_out_by_hand() -> None:
    logits = LOGITS.expand(3, 2, 4)
    targets = torch.tensor([[0, 0], [1, 0], [0, IGNORED]])
    plain = score_tokens(logits, targets, 0)
    assert plain.loss.item() == pytest.approx((1 + 1 + 2 + 1 + 1) * BIT)
    assert (plain.correct.item(), plain.tokens.item(), plain.whole.item()) == (4, 5, 2)
    smoothed = score_tokens(logits, targets, 0.1)
    assert smoothed.loss.item() == pytest.approx((0.9 * 6 + 0.1 * 2.25 * 5) * BIT)


def test_the_token_0_counts_and_what_follows_the_end_does_not() -> None:
    targets = torch.tensor([[0, IGNORED, IGNORED]])
    logits = torch.zeros(1, 3, 4)
    logits[0, 1:] = torch.tensor([math.inf, 0, 0, -math.inf])
    sums = score_tokens(logits, targets, 0)
    assert sums.loss.item() == pytest.approx(2 * BIT)
    assert (sums.tokens.item(), sums.whole.item()) == (1, 1)


def test_a_loss_in_half_precision_is_added_up_in_float32() -> None:
    targets = torch.zeros(64, 20, dtype=torch.int64)
    sums = score_tokens(LOGITS.to(torch.bfloat16).expand(64, 20, 4), targets, 0)
    assert sums.loss.dtype == torch.float32
    assert sums.loss.item() == pytest.approx(64 * 20 * BIT, rel=0.02)


@pytest.mark.parametrize(
    ("warmup_steps", "steps", "expected"),
    [
        (2, 6, [0, 0.5, 1, 0.75, 0.5, 0.25]),  # as recorded of the published training
        (0, 4, [1, 0.75, 0.5, 0.25]),
        (4, 4, [0, 0.25, 0.5, 0.75]),
        (10, 3, [0, 0.1, 0.2]),
        (0, 1, [1]),
    ],
)
def test_the_rate_grows_and_falls_as_worked_out_by_hand(warmup_steps: int, steps: int, expected: list[float]) -> None:
    assert [rate_factor(step, warmup_steps, steps) for step in range(steps)] == pytest.approx(expected)
    assert rate_factor(steps, warmup_steps, steps) in (0, pytest.approx(steps / max(1, warmup_steps)))
