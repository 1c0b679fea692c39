"""Text spaces: what a bundle refuses to mix, and what the message asks for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from export import bundle_builder
from export.bundle_builder import build
from export.checkpoint import Checkpoint, CheckpointError
from export.readers import read_checkpoint
from export.readers.families import BACKBONE_FAMILIES
from export.text_spaces import TEXT_SPACES, have_same_vectors, how_to_make_banks


class ExportBeganError(Exception):
    """Raised where a build has accepted a checkpoint."""


class StopBeforeExport:
    """Stops a build at its first graph."""

    def step(self, description: str) -> None:
        if "ONNX" in description:
            raise ExportBeganError

    def phase(self, name: str, done: int, total: int) -> None: ...

    def note(self, text: str) -> None: ...


def begin_build(
    monkeypatch: pytest.MonkeyPatch, folder: Path, backbone: str, space: str, bank_space: str | None
) -> None:
    """Begin to build a checkpoint of those names; all else of it is the demo's."""
    demo = read_checkpoint("demo")
    assert demo.memory is not None
    memory = replace(demo.memory, text_space=bank_space)
    checkpoint = replace(demo, source="mixed.yaml", backbone_name=backbone, text_space=space, memory=memory)

    def read(*_: object) -> Checkpoint:
        return checkpoint

    monkeypatch.setattr(bundle_builder, "read_checkpoint", read)
    build("mixed.yaml", folder / "bundle", StopBeforeExport())


@pytest.mark.parametrize(
    ("backbone", "space", "bank_space"),
    [
        ("clip_vitb32", "clip-b32", "clip-b32"),
        ("vit_base_patch16_clip_224.openai", "clip-b16", None),
        ("dinov2_vitb14_reg", "t2d-dinov2-b-2024", "t2d-dinov2-b-2024"),
        ("dinov2_vitb14_reg", "t2d-dinov2-b-2025", "t2d-dinov2-b-2025"),
        ("dinov2_vitb14", "t2d-0123456789ab", None),
        ("clip_vitb16", "robots-2026", "robots-2026"),
        ("my-backbone", "clip-b16", "clip-b16"),
    ],
)
def test_parts_of_one_space_are_built(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, backbone: str, space: str, bank_space: str | None
) -> None:
    with pytest.raises(ExportBeganError):
        begin_build(monkeypatch, tmp_path, backbone, space, bank_space)


@pytest.mark.parametrize(
    ("backbone", "space", "bank_space", "remedy"),
    [
        ("clip_vitb32", "clip-b32", "clip-b16", "make the bank with patchcaption build-memory-bank --space clip-b32"),
        ("siglip2_base_patch16", "siglip2-b", "clip-b16", "patchcaption build-memory-bank --space siglip2-b"),
        ("clip_vitb16", "robots-2026", "clip-b16", "the text tower that the decoder was trained with"),
        (
            "dinov2_vitb14_reg",
            "t2d-dinov2-b-2024",
            "t2d-dinov2-b-2025",
            "make the bank with the Talk2DINO weights that",
        ),
        ("dinov2_vitb14_reg", "t2d-0123456789ab", "t2d-dinov2-b-2024", "make the bank with the Talk2DINO weights that"),
    ],
)
def test_a_bank_of_another_space_is_refused_with_what_makes_the_right_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, backbone: str, space: str, bank_space: str, remedy: str
) -> None:
    with pytest.raises(CheckpointError) as caught:
        begin_build(monkeypatch, tmp_path, backbone, space, bank_space)
    message = str(caught.value)
    assert f"expected embeddings in the text space '{space}', the decoder's, got '{bank_space}'; " in message
    assert remedy in message
    assert ("Talk2DINO" in message) == space.startswith("t2d-")
    may_be_named = message.endswith(", or name its space by text_space in the configuration")
    assert may_be_named == (backbone not in ("clip_vitb32", "siglip2_base_patch16"))
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize(
    ("backbone", "own", "space"),
    [
        ("clip_vitb32", "clip-b32", "clip-b16"),
        ("openai/clip-vit-base-patch16", "clip-b16", "siglip2-b"),
        ("dinov2_vitb14_reg", "t2d-dinov2-b-2024", "t2d-dinov3-b"),
        ("siglip2_base_patch16", "siglip2-b", "t2d-dinov2-b-2024"),
    ],
)
def test_a_decoder_of_another_space_than_the_backbones_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, backbone: str, own: str, space: str
) -> None:
    message = f"^mixed.yaml: text_space: expected '{own}', the space of {backbone}, got '{space}'; take the decoder"
    for bank_space in (space, None):
        with pytest.raises(CheckpointError, match=message):
            begin_build(monkeypatch, tmp_path, backbone, space, bank_space)


def test_the_spaces_of_backbones_are_known_and_as_wide_as_their_vectors() -> None:
    architectures = [one for family in BACKBONE_FAMILIES for one in family.architectures.values()]
    for one in architectures:
        if one.text_space is not None:
            assert TEXT_SPACES[one.text_space].width == one.output_dim


def test_spaces_of_one_backbone_have_the_same_vectors() -> None:
    for name in TEXT_SPACES:
        same = {other for other in TEXT_SPACES if have_same_vectors(name, other)}
        assert same == ({"t2d-dinov2-b-2024", "t2d-dinov2-b-2025"} if "dinov2" in name else {name})
        assert have_same_vectors(name, "robots-2026")
    assert "Talk2DINO" not in how_to_make_banks("seeded")
