"""Batches of captions, each the same whenever and by however many processes it is drawn.

Shapes: B captions of a batch, L tokens of a caption, D width of the embeddings.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from export.training.data import TrainingData
from export.training.noise import Noise

ORDER, NOISE, DROPOUT, INITIAL, HELD_OUT = range(5)
"""What is drawn at random, each from numbers of its own."""


def seed_of(seed: int, *what: int) -> int:
    """Return the seed of what is drawn, which depends on nothing but the run's seed and these numbers."""
    (number,) = np.random.SeedSequence([seed, *what]).generate_state(1, np.uint64)
    return int(number) >> 1


@dataclass(frozen=True, eq=False)
class Batch:
    """Captions of a step: the decoder's inputs (B, D), token ids and targets (B, L)."""

    inputs: Tensor
    token_ids: Tensor
    targets: Tensor


class CaptionBatches:
    """Draws batches of captions: all of them once an epoch, in an order of its own, but for an incomplete last batch.

    Args:
        size: of a batch, over all processes.
        noise: what the embeddings go through, on the device where the decoder is trained.
    """

    def __init__(self, data: TrainingData, size: int, noise: Noise, seed: int, device: torch.device) -> None:
        self._data, self._size, self._noise, self._seed, self._device = data, size, noise, seed, device
        self._order: tuple[int, Tensor] | None = None
        self.per_epoch = len(data) // size

    def draw(self, step: int, rank: int = 0, processes: int = 1) -> Batch:
        """Return the share of one process in the batch of a step, from 0: every ``processes``-th caption of it."""
        epoch, index = divmod(step, self.per_epoch)
        rows = self._order_of(epoch)[index * self._size :][: self._size]
        generator = torch.Generator().manual_seed(seed_of(self._seed, NOISE, step))
        inputs = self._noise(self._data.unit(rows).to(self._device), generator)
        share = slice(rank, None, processes)
        return Batch(inputs[share], self._data.token_ids[rows[share]], self._data.targets[rows[share]])

    def _order_of(self, epoch: int) -> Tensor:
        if self._order is None or self._order[0] != epoch:
            generator = torch.Generator().manual_seed(seed_of(self._seed, ORDER, epoch))
            self._order = epoch, torch.randperm(len(self._data), generator=generator)
        return self._order[1]
