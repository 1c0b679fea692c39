"""The text spaces that captions, memory banks and decoders share, by name: one line each.

A vector that is to be turned into words must lie in the space that its decoder was trained in, so a bundle holds the
name of its space, and refuses a bank or a decoder of another (published-system.md, section 9).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class TextSpace:
    """How the embeddings of one space are used.

    Attributes:
        tower: the kind of text tower that makes its embeddings (`export.text_towers`).
        width: D, the width of its vectors.
        unit_rows: whether rows of a memory bank get unit length once, when it is read; else they keep theirs.
        unit_output: whether a vector that was projected onto the bank gets unit length.
        first_column: the first of the columns that are kept of the tower's embeddings.
    """

    tower: str
    width: int
    unit_rows: bool
    unit_output: bool
    first_column: int = 0


TALK2DINO = "talk2dino"

TEXT_SPACES: Mapping[str, TextSpace] = {
    "t2d-dinov2-b-2024": TextSpace(TALK2DINO, 768, unit_rows=False, unit_output=True),
    "t2d-dinov2-b-2025": TextSpace(TALK2DINO, 768, unit_rows=False, unit_output=True),
    "t2d-dinov3-b": TextSpace(TALK2DINO, 768, unit_rows=False, unit_output=True),
    "clip-b16": TextSpace("clip", 512, unit_rows=True, unit_output=False),
    "clip-b32": TextSpace("clip", 512, unit_rows=True, unit_output=False),
    "openclip-h14": TextSpace("open_clip", 1024, unit_rows=True, unit_output=False),
    "siglip2-b": TextSpace("siglip2", 768, unit_rows=True, unit_output=False),
    "dinotxt-patch": TextSpace("dinotxt", 1024, unit_rows=False, unit_output=True, first_column=1024),
    "denseclip-b16": TextSpace("clip", 512, unit_rows=True, unit_output=False),
    "regionclip-rn50": TextSpace("clip", 1024, unit_rows=True, unit_output=False),
}


def text_space(name: str | None, width: int) -> TextSpace:
    """Return the space of a name; one that is not published is like Talk2DINO's: rows as stored, output of length 1."""
    return TEXT_SPACES.get(name or "") or TextSpace(TALK2DINO, width, unit_rows=False, unit_output=True)
