"""The choice of the next token: exact, also where the logits are those of a rounded vocabulary."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from export.models.next_token import CANDIDATES, NextToken

TEXT, ALL, WIDTH = 960, 1000, 64


def chooser(recomputes: bool) -> NextToken:
    module = NextToken(TEXT)
    module.recomputes = recomputes
    return module


def vocabulary_and_states() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    vocabulary, states = torch.randn(ALL, WIDTH, generator=generator), torch.randn(500, WIDTH, generator=generator)
    vocabulary[TEXT:] *= 0.1  # no caption had them
    return vocabulary, states


def test_the_likeliest_token_with_text_is_chosen_and_all_count() -> None:
    logits = torch.full((1, ALL), -50.0)
    logits[0, [3, 700, TEXT]] = torch.tensor([1.0, 2.0, 5.0])
    ids, log_probs = chooser(recomputes=False)(logits, torch.zeros(1, WIDTH), torch.zeros(ALL, WIDTH))
    assert ids.tolist() == [700]
    torch.testing.assert_close(log_probs, torch.log_softmax(torch.tensor([[1.0, 2.0, 5.0]]), dim=1)[:, 1])


@pytest.mark.parametrize("steps", [127, 7])
def test_of_rounded_logits_the_same_token_is_chosen_as_of_exact_ones(steps: int) -> None:
    """7 steps on each side are those of 4 bits."""
    vocabulary, states = vocabulary_and_states()
    scales = vocabulary.abs().amax(dim=1, keepdim=True) / steps
    rounded = states @ ((vocabulary / scales).round() * scales).T
    exact_ids, exact_log_probs = chooser(recomputes=False)(states @ vocabulary.T, states, vocabulary)
    ids, log_probs = chooser(recomputes=True)(rounded, states, vocabulary)
    assert (rounded[:, :TEXT].argmax(dim=1) != exact_ids).any(), "else nothing is computed again"
    assert torch.equal(ids, exact_ids)
    torch.testing.assert_close(log_probs, exact_log_probs, rtol=0, atol={127: 0.01, 7: 0.5}[steps])


def test_candidates_are_the_best_of_the_whole_text_vocabulary_though_they_lie_in_one_block() -> None:
    logits = torch.zeros(2, ALL)
    logits[0, :CANDIDATES] = torch.arange(CANDIDATES) + 1.0
    logits[1, torch.arange(CANDIDATES) * 100] = torch.arange(CANDIDATES) + 1.0
    logits[:, TEXT:] = 99.0
    ids, best = chooser(recomputes=True)._candidates(logits)
    assert ids.tolist() == [list(range(CANDIDATES))[::-1], [100 * place for place in range(CANDIDATES)][::-1]]
    assert best.tolist() == [[float(CANDIDATES - place) for place in range(CANDIDATES)]] * 2


def test_of_equal_tokens_the_first_is_chosen() -> None:
    vocabulary, states = vocabulary_and_states()
    vocabulary[[40, 41, 900]] = 3 * states[0]
    ids, _ = chooser(recomputes=True)(states @ vocabulary.T, states, vocabulary)
    assert ids[0] == 40


def test_a_vocabulary_of_fewer_tokens_than_candidates_is_all_candidates() -> None:
    module = NextToken(3)
    module.recomputes = True
    vocabulary = torch.eye(3)
    ids, log_probs = module(torch.zeros(1, 3), torch.tensor([[0.0, 2.0, 1.0]]), vocabulary)
    assert ids.tolist() == [1]
    torch.testing.assert_close(log_probs, torch.log_softmax(torch.tensor([[0.0, 2.0, 1.0]]), dim=1)[:, 1])
