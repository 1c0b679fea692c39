"""Differences between what a bundle computes and what the published system computed, and which are rounding."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

NEAR_TIE = 0.01
"""A difference of logits at which rounding may choose the other token, and then other tokens after it."""

ALLOWED = {"pixels": 0.0, "tokens": 1e-5, "vectors": 2e-4, "projected": 2e-4, "scores": 1e-3}
"""Pixels are whole numbers. Sums of float32 numbers in another order differ by about 1e-6 in tokens and vectors; the
softmax at temperature 0.01 makes 1e-5 of it; a score is the exponential of a sum over 30 steps."""


@dataclass(frozen=True)
class Difference:
    """The differences between a task's outputs and the recording, the worst over its regions; None if not recorded.

    Attributes:
        pixels: largest difference, of 255.
        tokens, vectors, projected: largest difference relative to the largest value of a vector.
        scores: relative difference.
        regions, same_texts: how many captions, and how many of them have the recorded text.
        is_made: whether anything here computes the task.
        spread: how many times the usual difference there may be.
        near_ties: the numbers of other captions that have it too where the recorded vector is decoded: rounding chose.
    """

    task: str
    regions: int = 0
    same_texts: int = 0
    is_made: bool = True
    spread: float = 1.0
    near_ties: tuple[int, ...] = ()
    pixels: float | None = None
    tokens: float | None = None
    vectors: float | None = None
    projected: float | None = None
    scores: float | None = None

    @property
    def faults(self) -> list[str]:
        """The differences that rounding does not explain."""
        right = self.same_texts + len(self.near_ties)
        faults = [] if right == self.regions else [f"{self.task}: {right} of {self.regions} texts"]
        faults += [] if self.is_made else [f"{self.task}: not made here"]
        for name, allowed in ALLOWED.items():
            value = getattr(self, name)
            if value is not None and not value <= allowed * self.spread:
                faults.append(f"{self.task}: {name} differ by {value:.1e}")
        return faults


def relative_difference(
    found: torch.Tensor | None, recorded: npt.NDArray[np.float32] | None, stride: int = 1
) -> float | None:
    """Return the largest difference, relative to the largest value of its row; None where either is not there.

    Args:
        stride: of the rows of ``found`` that were recorded.
    """
    if found is None or recorded is None:
        return None
    want = recorded.reshape(-1, recorded.shape[-1])
    got = found[::stride].numpy().reshape(want.shape)
    return float((np.abs(got - want).max(axis=1) / np.abs(want).max(axis=1)).max())
