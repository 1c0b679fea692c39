"""The value of a metric over the samples of an evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class MetricScore:
    """What a metric gives.

    Attributes:
        value: over all samples: their mean, or the metric's own figure for a corpus, as BLEU has one.
        std: the population standard deviation of the samples' own values; None where a sample has none.
    """

    value: float
    std: float | None = None

    @classmethod
    def of_samples(cls, values: Sequence[float], value: float | None = None) -> MetricScore:
        """Return the score of samples, whose mean is the value unless another is given."""
        return cls(float(np.mean(values)) if value is None else value, float(np.std(values)))
