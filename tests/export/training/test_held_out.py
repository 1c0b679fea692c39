"""Scores of captions that were held out, against numbers that were worked out by hand."""

from __future__ import annotations

import math
from typing import cast

import pytest
import torch
from torch import Tensor, nn

from export.training.data import TrainingData
from export.training.decoder import TrainableDecap
from export.training.held_out import score_held_out
from export.training.noise import GaussianNoise, no_noise
from export.training.objective import IGNORED


class HalfRight(nn.Module):
    """Gives each token that should follow 1/2 and each of the two others 1/4; of odd captions the second is wrong.

    Attributes:
        inputs: that it was given.
    """

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.inputs: list[Tensor] = []

    def forward(self, embeddings: Tensor, token_ids: Tensor) -> Tensor:
        assert not self.training, "without dropout"
        self.inputs.append(embeddings)
        said = token_ids.clone()
        is_odd = token_ids[:, 0] == 1
        said[is_odd, 1] = (said[is_odd, 1] + 1) % 3
        return torch.where(nn.functional.one_hot(said, 3).bool(), 0.5, 0.25).log()


def captions(count: int) -> TrainingData:
    """Captions of two tokens, the first of which is 1 for odd ones, and one that does not count."""
    token_ids = torch.zeros(count, 3, dtype=torch.int64)
    token_ids[1::2, 0] = 1
    targets = token_ids.clone()
    targets[:, 2] = IGNORED
    return TrainingData(torch.randn(count, 4, generator=torch.Generator().manual_seed(0)), token_ids, targets)


@pytest.mark.parametrize("count", [2, 600])
def test_scores_are_as_worked_out_by_hand(count: int) -> None:
    model = HalfRight()
    score = score_held_out(cast(TrainableDecap, model), captions(count), no_noise, 0)
    # Of every two captions, three tokens cost 1 bit and one costs 2.
    assert score.loss == pytest.approx(5 / 4 * math.log(2))
    assert (score.accuracy, score.captions) == (3 / 4, 1 / 2)
    inputs = torch.cat(model.inputs)
    assert len(inputs) == count
    torch.testing.assert_close(inputs.norm(dim=1), torch.ones(count))


def test_the_noise_is_the_same_each_time_and_another_for_each_part() -> None:
    model, data = HalfRight(), captions(512)
    data.embeddings[:] = 1
    for _ in range(2):
        score_held_out(cast(TrainableDecap, model), data, GaussianNoise(0.5), 3)
    first, second, *again = model.inputs
    assert first.equal(again[0])
    assert second.equal(again[1])
    assert not first.equal(second)
