"""Captions that are hard to tell from a given one, for the contrastive loss.

Shapes: R regions, C candidate captions, M captions of the demo's world.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from export.demo import scenes

_NEGATIVES_PER_CAPTION = 4


class HardNegatives:
    """Hard negatives of every caption: captions that differ in one word, and the swap of each pair."""

    def __init__(self, device: torch.device) -> None:
        captions = scenes.all_captions()
        index = {caption: i for i, caption in enumerate(captions)}
        self._one_word_apart = torch.tensor([_one_word_apart(caption, index) for caption in captions], device=device)
        swapped = [index.get(scenes.swapped_pair(caption), index[caption]) for caption in captions]
        self._swapped = torch.tensor(swapped, device=device)

    def sample_candidates(
        self, captions: Tensor, random_count: int, generator: torch.Generator, *, with_swaps: bool
    ) -> tuple[Tensor, Tensor]:
        """Return the captions that the regions are contrasted with, and where each region's own is among them.

        Args:
            captions: (R) index of each region's caption.
            random_count: number of captions of any kind that are added.
            generator: the source of all random choices.
            with_swaps: whether the swap of each pair is added.

        Returns:
            (C) indices of different captions, and (R) the position of each region's own among them. Each region adds
            its own caption and one that differs in one word.
        """
        column = torch.randint(self._one_word_apart.shape[1], captions.shape, generator=generator).to(captions)
        random = torch.randint(len(self._one_word_apart), (random_count,), generator=generator).to(captions)
        swapped = self._swapped[captions] if with_swaps else random
        own, position = torch.unique(captions, return_inverse=True)
        negatives = torch.unique(torch.cat([self._one_word_apart[captions, column], swapped, random]))
        return torch.cat([own, negatives[~torch.isin(negatives, own)]]), position


def _one_word_apart(caption: str, index: dict[str, int]) -> list[int]:
    """Return the indices of random captions that differ from this one in one word, always the same for a caption."""
    vocabularies = [
        *scenes.ATTRIBUTES.values(),
        scenes.BACKDROPS,
        tuple(scenes.TONES),
        tuple(scenes.COUNTS.values()),
    ]
    rng = np.random.default_rng(index[caption])
    words = caption.split()
    found: list[int] = []
    while len(found) < _NEGATIVES_PER_CAPTION:
        position = rng.integers(len(words))
        alternatives = next((vocabulary for vocabulary in vocabularies if words[position] in vocabulary), None)
        if alternatives is None:
            continue
        changed = " ".join([*words[:position], str(rng.choice(alternatives)), *words[position + 1 :]])
        if changed != caption and changed in index:
            found.append(index[changed])
    return found
