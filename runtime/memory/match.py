"""A caption of the memory bank near a region."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class MemoryMatch:
    """A caption of the memory bank near a region.

    Attributes:
        text: the caption.
        similarity: the cosine between its embedding and the region's vector, in -1..1.

    Example:
        >>> match = captioner.caption(scene, [Box(276, 174, 507, 399)], n_best=3)[0].nearest[0]
        >>> match.text, round(match.similarity, 2)
        ('a large striped red triangle', 0.82)
    """

    text: str
    similarity: float
