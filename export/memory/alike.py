"""Counts the rows of a bank that are alike but for their rounding.

Shapes: m rows, D width.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

_BITS = 63
"""Of a row's signature. Rows that differ by a fiftieth of their length agree in all of them two times in three; rows
whose cosine is 0.9 once in ten thousand."""


class AlikeRows:
    """The signatures of rows: on which side of random planes each lies (Charikar, STOC 2002).

    Args:
        width: D.
    """

    def __init__(self, width: int) -> None:
        self._planes = torch.randn(width, _BITS, generator=torch.Generator().manual_seed(0))
        self._places = 2 ** torch.arange(_BITS)
        self._signatures: list[Tensor] = []

    def add(self, rows: Tensor) -> None:
        """Take rows (m, D)."""
        self._signatures.append(((rows @ self._planes > 0) * self._places).sum(dim=1))

    def most(self) -> int:
        """Return how many rows have the same signature, at most; 0 if there are no rows."""
        if not self._signatures:
            return 0
        return int(np.unique(torch.cat(self._signatures).numpy(), return_counts=True)[1].max())
