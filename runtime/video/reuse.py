"""Reuses the captions of the previous frame for regions that have hardly changed since.

Shapes: R regions, D width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from runtime.features import RegionVectors
from runtime.results import Caption


class CaptionReuse:
    """Remembers the captions of the last frame's regions, and the vectors that they were decoded from.

    A caption is matched with any region of the last frame, so regions may change their order. It is compared with the
    vector that it was decoded from, so that slow changes add up until it is decoded again.

    Args:
        min_cosine: between a region's vector and the one that its caption was decoded from.
    """

    def __init__(self, min_cosine: float) -> None:
        self._min_cosine = min_cosine
        self._unit_vectors: Tensor | None = None  # (R, D) that the last frame's captions were decoded from
        self._captions: list[Caption] = []

    def captions(self, vectors: RegionVectors, decode: Callable[[RegionVectors], list[Caption]]) -> list[Caption]:
        """Return the captions of region vectors (R, D).

        Args:
            decode: decodes the vectors of regions that have changed.
        """
        unit_vectors = F.normalize(vectors.data, dim=-1)
        captions, matches = self._match_previous(unit_vectors)
        changed = [row for row, caption in enumerate(captions) if caption is None]
        if changed:
            decoded = decode(replace(vectors, data=vectors.data[changed]))
            for row, caption in zip(changed, decoded, strict=True):
                captions[row] = caption
        found = [caption for caption in captions if caption is not None]
        self._remember(unit_vectors, matches, found)
        return found

    def _match_previous(self, unit_vectors: Tensor) -> tuple[list[Caption | None], list[int]]:
        """Return the captions to reuse, and the previous rows that they come from; None and -1 where there is none."""
        if self._unit_vectors is None or len(self._captions) == 0 or len(unit_vectors) == 0:
            return [None] * len(unit_vectors), [-1] * len(unit_vectors)
        cosines, rows = (unit_vectors @ self._unit_vectors.T).max(dim=1)
        matches = torch.where(cosines >= self._min_cosine, rows, -1).tolist()
        return [None if row < 0 else replace(self._captions[row], reused=True) for row in matches], matches

    def _remember(self, unit_vectors: Tensor, matches: list[int], captions: list[Caption]) -> None:
        decoded_from = unit_vectors.clone()
        for row, previous in enumerate(matches):
            if previous >= 0:
                assert self._unit_vectors is not None
                decoded_from[row] = self._unit_vectors[previous]
        self._unit_vectors, self._captions = decoded_from, [replace(one, reused=False) for one in captions]
