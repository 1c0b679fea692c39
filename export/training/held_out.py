"""How well a decoder says captions that it has not learned."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from export.training.batches import HELD_OUT, seed_of
from export.training.data import TrainingData
from export.training.decoder import TrainableDecap
from export.training.noise import Noise
from export.training.objective import score_tokens

_BATCH = 256


@dataclass(frozen=True)
class HeldOutScore:
    """Scores of captions that were held out.

    Attributes:
        loss: the mean over their tokens, without label smoothing.
        accuracy: the share of tokens that the decoder chooses after the right ones.
        captions: the share of captions that it says word for word.
    """

    loss: float
    accuracy: float
    captions: float


@torch.inference_mode()
def score_held_out(model: TrainableDecap, data: TrainingData, noise: Noise, seed: int) -> HeldOutScore:
    """Score a decoder; the noise is the same each time. Dropout is off."""
    device = next(model.parameters()).device
    model.eval()
    sums = torch.zeros(4, dtype=torch.float64)
    for start in range(0, len(data), _BATCH):
        rows = torch.arange(start, min(start + _BATCH, len(data)))
        inputs = noise(data.unit(rows).to(device), torch.Generator().manual_seed(seed_of(seed, HELD_OUT, start)))
        own = score_tokens(model(inputs, data.token_ids[rows].to(device)), data.targets[rows].to(device), 0)
        sums += torch.stack([part.double().cpu() for part in (own.loss, own.correct, own.tokens, own.whole)])
    loss, correct, tokens, whole = sums.tolist()
    return HeldOutScore(loss / tokens, correct / tokens, whole / len(data))
