"""Batches of captions and their noise: the same for any number of processes, each caption once an epoch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from export.training import noise
from export.training.batches import Batch, CaptionBatches
from export.training.data import TrainingData
from export.training.noise import GaussianNoise, ProjectedNoise, no_noise
from tests.memory.test_stored_banks import build_bank

CPU = torch.device("cpu")


def numbered(count: int, width: int = 8) -> TrainingData:
    """Captions whose only token is their number."""
    ids = torch.arange(count)[:, None]
    return TrainingData(torch.randn(count, width, generator=torch.Generator().manual_seed(0)), ids, ids)


def batches(count: int = 23, size: int = 5, seed: int = 0, own: noise.Noise = no_noise) -> CaptionBatches:
    return CaptionBatches(numbered(count), size, own, seed, CPU)


def epoch(drawn: CaptionBatches, number: int) -> list[int]:
    steps = range(number * drawn.per_epoch, (number + 1) * drawn.per_epoch)
    return [caption for step in steps for caption in drawn.draw(step).token_ids[:, 0].tolist()]


def test_an_epoch_has_each_caption_once_but_for_an_incomplete_batch() -> None:
    drawn = batches(count=23, size=5)
    assert drawn.per_epoch == 4
    assert len(set(epoch(drawn, 0))) == len(epoch(drawn, 0)) == 20
    assert sorted(epoch(batches(count=20), 3)) == list(range(20))


def test_the_order_is_another_in_each_epoch_and_for_each_seed_and_the_same_each_time() -> None:
    orders = [tuple(epoch(batches(seed=seed), number)) for seed in range(3) for number in range(3)]
    assert len(set(orders)) == 9
    assert orders == [tuple(epoch(batches(seed=seed), number)) for seed in range(3) for number in range(3)]


@pytest.mark.parametrize("processes", [2, 3, 5])
@pytest.mark.parametrize("own", [no_noise, GaussianNoise(0.5)])
def test_processes_share_the_batch_that_one_would_draw(processes: int, own: noise.Noise) -> None:
    whole = batches(own=own).draw(6)
    shares = [batches(own=own).draw(6, rank, processes) for rank in range(processes)]
    for rank, share in enumerate(shares):
        assert share.inputs.equal(whole.inputs[rank::processes])
        assert share.token_ids.equal(whole.token_ids[rank::processes])
        assert share.targets.equal(whole.targets[rank::processes])
    assert sum(len(share.token_ids) for share in shares) == 5


def test_a_step_can_be_drawn_without_those_before_it() -> None:
    drawn = batches(own=GaussianNoise(0.1))
    in_order: list[Batch] = [drawn.draw(step) for step in range(9)]
    alone = batches(own=GaussianNoise(0.1)).draw(8)
    assert alone.inputs.equal(in_order[8].inputs)
    assert alone.token_ids.equal(in_order[8].token_ids)


def test_inputs_have_length_1_whatever_the_bank_has() -> None:
    data = numbered(10)
    inputs = CaptionBatches(data, 10, no_noise, 0, CPU).draw(0)
    torch.testing.assert_close(inputs.inputs, F.normalize(data.embeddings, dim=1)[inputs.token_ids[:, 0]])


def noisy(own: noise.Noise, embeddings: Tensor, seed: int = 0) -> Tensor:
    return own(embeddings, torch.Generator().manual_seed(seed))


def test_capdecs_noise_has_its_deviation_in_every_component() -> None:
    embeddings = F.one_hot(torch.zeros(4000, dtype=torch.int64), 64).float()
    found = noisy(GaussianNoise(0.08), embeddings)
    torch.testing.assert_close(found.norm(dim=1), torch.ones(4000))
    others = found[:, 1:] / found[:, :1]  # the length that it is brought to again is no matter
    assert others.mean().item() == pytest.approx(0, abs=1e-3)
    # The divisor is 1 + 0.08 n, which makes them wider by a factor of about 1 + 1.5 * 0.08 ** 2.
    assert others.std(dim=0) == pytest.approx(torch.full((63,), 0.0808), rel=0.06)
    assert not noisy(GaussianNoise(0.08), embeddings).equal(noisy(GaussianNoise(0.08), embeddings, seed=1))
    assert noisy(GaussianNoise(0), embeddings).equal(embeddings)


@pytest.mark.parametrize("normalize", [True, False])
def test_without_noise_projected_embeddings_are_what_a_bundle_projects(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, normalize: bool
) -> None:
    memory = torch.randn(200, 16, generator=torch.Generator().manual_seed(1)) * torch.linspace(1, 2, 200)[:, None]
    monkeypatch.setattr(torch, "rand", zeros)
    embeddings = F.normalize(memory[:50], dim=1)
    found = noisy(ProjectedNoise(memory, 0.01, normalize), embeddings)
    expected = build_bank(memory, "fp32", tmp_path / "bank").project(embeddings)
    torch.testing.assert_close(F.normalize(found, dim=1), expected, rtol=0, atol=1e-5)
    assert normalize == bool((found.norm(dim=1) - 1).abs().max() < 1e-5)


def zeros(*shape: int, generator: torch.Generator) -> Tensor:
    del generator
    return torch.zeros(shape)


def test_noise_that_is_projected_stays_within_a_length_of_the_embedding() -> None:
    memory = F.normalize(torch.randn(500, 16, generator=torch.Generator().manual_seed(1)), dim=1)
    found = noisy(ProjectedNoise(memory, 0.01, normalize=True), memory)
    cosines = (found * memory).sum(dim=1)
    assert 0.8 < cosines.mean().item() < 1
    assert cosines.min().item() < 0.8, "some get much noise"
