"""Embeds names of entities, each put into photographs' captions, by any text tower (published-system.md, section 18).

Shapes: m names, n templates, L tokens of the longest text, D width of the embeddings.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from export.text_towers.base import TextTower

EntityTexts: TypeAlias = Literal["ensemble", "plain"]

ENSEMBLE = (
    "itap of a {}.",
    "a bad photo of the {}.",
    "a origami {}.",
    "a photo of the large {}.",
    "a {} in a video game.",
    "art of the {}.",
    "a photo of the small {}.",
)
"""The published templates of the ensemble, word for word."""


def entity_tower(tower: TextTower, texts: EntityTexts, first_column: int = 0) -> TextTower:
    """Return a tower that embeds names of entities, as the published vocabularies were made.

    Args:
        texts: "ensemble" for the mean of seven templates' embeddings of unit length, made unit itself; "plain" for the
            embedding of "A photo of a NAME.", as it is.
        first_column: the first column that the text space keeps; those before it are normalised by themselves.
    """
    identity = f"{tower.identity}, {texts} of entities"
    if texts == "plain":
        return replace(tower, tokenize=_tokenize(tower, lambda name: [_photo_of(name)]), identity=identity)

    def embed_ids(ids: Tensor) -> Tensor:
        embeddings = tower.embed_ids(ids).unflatten(0, (-1, len(ENSEMBLE)))
        parts = embeddings.tensor_split((first_column,), dim=-1)
        return torch.cat([F.normalize(F.normalize(part, dim=-1).mean(1), dim=-1) for part in parts], dim=-1)

    tokenize = _tokenize(tower, lambda name: [template.format(name) for template in ENSEMBLE])
    return replace(tower, tokenize=tokenize, embed_ids=embed_ids, identity=identity)


def _tokenize(tower: TextTower, texts_of: Callable[[str], list[str]]) -> Callable[[Sequence[str]], Tensor]:
    """Return a function that makes token ids (m * n, L) of m names, the n texts of each one after another."""
    return lambda names: tower.tokenize([text for name in names for text in texts_of(name)])


def _photo_of(name: str) -> str:
    return f"A photo of {'an' if name[0] in 'aeiouAEIOU' else 'a'} {name}."
