"""What kernels return where they refine some rows only.

Shapes: R queries, D width.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class RefinedSums(NamedTuple):
    """Weighted sums of rows, the nearest of which are refined, and what the rounding of the others does to the sums.

    Attributes:
        sums: (R, D).
        errors: how far it is expected to move each sum at random, relative to the sum's length (R,).
        drifts: the part of each sum that those rows make across its direction, relative to its length (R,). Rounding
            makes their weights larger on average, and moves the sum that way.
    """

    sums: Tensor
    errors: Tensor
    drifts: Tensor
