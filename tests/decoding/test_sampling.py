"""The nucleus and what is drawn from it, by hand."""

from __future__ import annotations

import pytest
import torch

from runtime.decoding.sampling import NucleusSampler, nucleus

PROBS = torch.tensor([[0.1, 0.5, 0.15, 0.25]])


@pytest.mark.parametrize(
    ("top_p", "kept"),
    [
        (0.0, [1]),
        (0.4, [1]),  # 0.5 before the second exceeds it
        (0.5, [1, 3]),  # 0.5 does not exceed 0.5
        (0.8, [1, 3, 2]),
        (1.0, [1, 3, 2, 0]),
    ],
)
def test_a_token_is_dropped_if_those_before_it_exceed_top_p(top_p: float, kept: list[int]) -> None:
    tokens, probs = nucleus(PROBS.log(), top_p, temperature=1.0)
    assert tokens[0, : len(kept)].tolist() == kept
    torch.testing.assert_close(probs[0, : len(kept)], PROBS[0, kept] / PROBS[0, kept].sum())
    assert probs[0, len(kept) :].tolist() == [0.0] * (4 - len(kept))


def test_the_temperature_flattens_before_the_nucleus_is_cut() -> None:
    _, probs = nucleus(PROBS.log(), 1.0, temperature=2.0)
    flat = PROBS.sqrt() / PROBS.sqrt().sum()
    torch.testing.assert_close(probs, flat.sort(dim=1, descending=True).values)


def test_tokens_are_drawn_as_often_as_they_are_probable() -> None:
    draws = 20_000
    sampler = NucleusSampler(0.8, 1.0, seed=1, steps=draws)
    captions = torch.zeros(1, dtype=torch.int64)
    counts = [0] * 4
    log_probs = PROBS.log()
    for step in range(draws):
        counts[int(sampler(log_probs, captions, step))] += 1
    expected = [0.0, 0.5 / 0.9, 0.15 / 0.9, 0.25 / 0.9]
    # four standard deviations of the count that varies most
    assert [count / draws for count in counts] == pytest.approx(expected, abs=4 * (0.25 / draws) ** 0.5)
    assert counts[0] == 0
