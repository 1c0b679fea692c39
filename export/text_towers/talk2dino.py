"""CLIP's text tower, and Talk2DINO's projection of its embeddings (published-system.md, section 5)."""

from __future__ import annotations

from dataclasses import replace

from export.checkpoint import CheckpointError
from export.readers.talk2dino import read_talk2dino
from export.text_spaces import is_name_of
from export.text_towers.base import TextTower, TowerRequest
from export.text_towers.clip import load_clip


def load_talk2dino(request: TowerRequest) -> TextTower:
    """Load a tower of CLIP and a projection of its embeddings, whose file says which space that is into.

    Where several published projections are for one backbone, "t2d-" and the backbone's name asks for any of them.

    Raises:
        CheckpointError: one of them cannot be read, they do not fit, or the space is another.
    """
    assert request.projection is not None  # what has a projection is loaded with one
    talk2dino = read_talk2dino(request.projection)
    if request.text_space is not None and not is_name_of(request.text_space, talk2dino.text_space):
        raise CheckpointError(
            f"{request.projection}: expected a projection into the text space {request.text_space}, got one into "
            f"{talk2dino.text_space}: {talk2dino.identity}"
        )
    clip = load_clip(request)
    if clip.width != talk2dino.text_width:
        raise CheckpointError(
            f"{request.projection}: expected a projection of texts of width {clip.width}, {request.weights}'s, got "
            f"{talk2dino.text_width}"
        )
    return replace(
        clip,
        embed_ids=lambda ids: talk2dino(clip.embed_ids(ids)),
        width=talk2dino.width,
        text_space=talk2dino.text_space,
        identity=f"{clip.identity}, Talk2DINO {talk2dino.sha256}",
        notes=(f"{request.projection}: {talk2dino.identity}",),
    )
