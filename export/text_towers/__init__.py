"""Text towers, which make memory banks of captions: one small file each, by the names of `export.text_spaces`.

To add one: its file, a line in `TEXT_TOWERS`, and its name in the line of its text space.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from export.checkpoint import CheckpointError
from export.text_spaces import TALK2DINO, TEXT_SPACES, TextSpace, text_space
from export.text_towers.base import TextTower, TowerRequest
from export.text_towers.clip import load_clip, load_denseclip, load_open_clip
from export.text_towers.dinotxt import load_dinotxt
from export.text_towers.siglip2 import load_siglip2
from export.text_towers.talk2dino import load_talk2dino


@dataclass(frozen=True)
class TowerKind:
    """A kind of text tower.

    Attributes:
        load: loads one; it raises CheckpointError where that does not succeed.
        has_projection: whether its embeddings pass a projection, a file of its own.
    """

    load: Callable[[TowerRequest], TextTower]
    has_projection: bool = False


TEXT_TOWERS: Mapping[str, TowerKind] = {
    "clip": TowerKind(load_clip),
    "open_clip": TowerKind(load_open_clip),
    "denseclip": TowerKind(load_denseclip),
    "siglip2": TowerKind(load_siglip2),
    "dinotxt": TowerKind(load_dinotxt),
    TALK2DINO: TowerKind(load_talk2dino, has_projection=True),
}


def open_text_tower(
    space: str | None, weights: str | None, projection: Path | None, tokenizer_file: Path | None, device: str
) -> TextTower:
    """Open the tower that embeds captions into a text space.

    Args:
        space: its name; None for that of the projection.
        weights: a folder, a file or a repository of the hub; None for the published ones.
        projection: Talk2DINO's file, for a space that is made by one.
        tokenizer_file: a tokenizer.json; None for the tower's own.

    Raises:
        CheckpointError: the space is not known, or what it is made by is missing, cannot be read or does not fit.
    """
    known = _find_space(space, projection)
    kind = TEXT_TOWERS[known.tower]
    if kind.has_projection and projection is None:
        raise CheckpointError(f"--space {space}: --talk2dino is missing; expected the file of the projection into it")
    if projection is not None and not kind.has_projection:
        raise CheckpointError(f"--talk2dino {projection}: the text space {space} has no such projection; leave it out")
    weights = weights or known.tower_weights
    tower = kind.load(TowerRequest(space, weights, tokenizer_file, projection, device))
    if not kind.has_projection and tower.width != known.bank_width:
        raise CheckpointError(
            f"--text-tower {weights}: expected embeddings of width {known.bank_width}, {space}'s, got {tower.width}"
        )
    return tower


def _find_space(name: str | None, projection: Path | None) -> TextSpace:
    """Return a text space; one that is not published is Talk2DINO's, if there is a projection."""
    names = ", ".join(TEXT_SPACES)
    if name is None and projection is None:
        raise CheckpointError(
            f"--space is missing; expected the text space of the decoder, one of {names}, or --talk2dino with the "
            "projection that the decoder was trained with"
        )
    if name not in TEXT_SPACES and projection is None:
        raise CheckpointError(f"--space {name}: expected one of {names}")
    return text_space(name, 0)
