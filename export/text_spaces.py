"""The text spaces that captions, memory banks and decoders share, by name: one line each.

A vector that is to be turned into words must lie in the space that its decoder was trained in, so a bundle holds the
name of its space, and refuses a bank or a decoder of another (published-system.md, section 15).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

TALK2DINO, TALK2DINO_PREFIX = "talk2dino", "t2d-"
"""Talk2DINO's tower, and how the names of its spaces begin, published or not."""
CLIP_B16 = "openai/clip-vit-base-patch16"


@dataclass(frozen=True)
class TextSpace:
    """How the embeddings of one space are made and used.

    Attributes:
        tower: the kind of text tower that makes its embeddings (`export.text_towers`).
        width: D, the width of its vectors.
        unit_rows: whether rows of a memory bank get unit length once, when it is read; else they keep theirs.
        unit_output: whether a vector that was projected onto the bank gets unit length.
        first_column: the first of the columns that are kept of the tower's embeddings.
        tower_weights: the published weights of the tower: a repository of the Hugging Face hub, or the name of a file.
        backbone: names the backbones whose vectors lie in the space, where several spaces are theirs; None for those
            that have the space as their own alone.
    """

    tower: str
    width: int
    unit_rows: bool
    unit_output: bool
    first_column: int = 0
    tower_weights: str = CLIP_B16
    backbone: str | None = None

    @property
    def bank_width(self) -> int:
        """The width of the tower's embeddings, which a bank's file holds."""
        return self.first_column + self.width


TEXT_SPACES: Mapping[str, TextSpace] = {
    "t2d-dinov2-b-2024": TextSpace(TALK2DINO, 768, unit_rows=False, unit_output=True, backbone="dinov2-b"),
    "t2d-dinov2-b-2025": TextSpace(TALK2DINO, 768, unit_rows=False, unit_output=True, backbone="dinov2-b"),
    "t2d-dinov3-b": TextSpace(TALK2DINO, 768, unit_rows=False, unit_output=True),
    "clip-b16": TextSpace("clip", 512, unit_rows=True, unit_output=False),
    "clip-b32": TextSpace("clip", 512, unit_rows=True, unit_output=False, tower_weights="openai/clip-vit-base-patch32"),
    "openclip-h14": TextSpace(
        "open_clip", 1024, unit_rows=True, unit_output=False, tower_weights="laion/CLIP-ViT-H-14-laion2B-s32B-b79K"
    ),
    **{
        name: TextSpace(
            "siglip2", width, unit_rows=True, unit_output=False, tower_weights=f"google/siglip2-{repository}"
        )
        for name, width, repository in (
            ("siglip2-b", 768, "base-patch16-512"),
            *((f"siglip2-b-{size}", 768, f"base-patch16-{size}") for size in (224, 256, 384)),
            *((f"siglip2-l-{size}", 1024, f"large-patch16-{size}") for size in (256, 384, 512)),
            *((f"siglip2-so400m-{size}", 1152, f"so400m-patch16-{size}") for size in (256, 384, 512)),
            ("siglip2-so400m-224", 1152, "so400m-patch14-224"),
        )
    },
    "dinotxt-patch": TextSpace(
        "dinotxt",
        1024,
        unit_rows=False,
        unit_output=True,
        first_column=1024,
        tower_weights="dinov2_vitl14_reg4_dinotxt_tet1280d20h24l_text_encoder.pth",
    ),
    "denseclip-b16": TextSpace(
        "denseclip", 512, unit_rows=True, unit_output=False, tower_weights="ViT-B-DenseCLIP_long_ctx.pth"
    ),
    "regionclip-rn50": TextSpace(
        "clip", 1024, unit_rows=True, unit_output=False, tower_weights="regionclip_pretrained-cc_rn50.pth"
    ),
}


def text_space(name: str | None, width: int) -> TextSpace:
    """Return the space of a name; one that is not published, of vectors of that width, is used as Talk2DINO's are.

    That is: rows as stored, vectors of length 1.
    """
    return TEXT_SPACES.get(name or "") or TextSpace(TALK2DINO, width, unit_rows=False, unit_output=True)


def is_name_of(name: str, space: str) -> bool:
    """Return whether a name asks for a space: its own, or "t2d-" and the backbone that it is one of several for."""
    known = TEXT_SPACES.get(space)
    return name == space or bool(known and known.backbone and name == f"{TALK2DINO_PREFIX}{known.backbone}")


def have_same_vectors(first: str, second: str) -> bool:
    """Return whether the same backbone's vectors lie in two spaces, as far as they are published."""
    known = [TEXT_SPACES.get(name) for name in (first, second)]
    backbones = {space.backbone or name for space, name in zip(known, (first, second), strict=True) if space}
    return None in known or len(backbones) == 1


def how_to_make_banks(name: str) -> str:
    """Return what to do for want of a memory bank in a space, for messages."""
    if name.startswith(TALK2DINO_PREFIX):
        return "make the bank with the Talk2DINO weights that the decoder was trained with"
    if name in TEXT_SPACES:
        return f"make the bank with patchcaption build-memory-bank --space {name}"
    return "make the bank with the text tower that the decoder was trained with"
