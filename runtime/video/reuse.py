"""Captions of an earlier frame, for regions that have hardly changed since.

Shapes: R regions, D width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from runtime.results import Caption


class CaptionReuse:
    """Remembers what the regions of the last frame were called, and from which vectors.

    A caption is taken over from any region of the last frame, so regions may change their places among each other. It
    is compared with the vector that it was decoded from, so that slow changes add up until it is decoded anew.

    Args:
        least_cosine: of a region's vector and the one that the caption was decoded from.
    """

    def __init__(self, least_cosine: float) -> None:
        self._least = least_cosine
        self._directions: Tensor | None = None  # (R, D) of the last frame's captions
        self._captions: list[Caption] = []

    def words(self, vectors: Tensor, words: Callable[[Tensor], list[Caption]]) -> list[Caption]:
        """Captions of vectors (R, D).

        Args:
            words: what decodes those that have changed.
        """
        directions = F.normalize(vectors, dim=-1)
        captions, places = self._taken_over(directions)
        changed = [row for row, caption in enumerate(captions) if caption is None]
        if changed:
            for row, caption in zip(changed, words(vectors[changed]), strict=True):
                captions[row] = caption
        found = [caption for caption in captions if caption is not None]
        self._remember(directions, places, found)
        return found

    def _taken_over(self, directions: Tensor) -> tuple[list[Caption | None], list[int]]:
        """The captions to use again, and the places that they had; -1 for none."""
        nothing: list[Caption | None] = [None] * len(directions)
        if self._directions is None or len(self._captions) == 0 or len(directions) == 0:
            return nothing, [-1] * len(directions)
        cosines, places = (directions @ self._directions.T).max(dim=1)
        kept = torch.where(cosines >= self._least, places, -1).tolist()
        return [None if place < 0 else replace(self._captions[place], reused=True) for place in kept], kept

    def _remember(self, directions: Tensor, places: list[int], captions: list[Caption]) -> None:
        decoded_from = directions.clone()
        for row, place in enumerate(places):
            if place >= 0:
                assert self._directions is not None
                decoded_from[row] = self._directions[place]
        self._directions, self._captions = decoded_from, [replace(one, reused=False) for one in captions]
