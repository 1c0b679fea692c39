"""Seeded checkpoints: random weights that depend on their names alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from export.checkpoint import CheckpointError
from export.readers import read_checkpoint
from export.readers.dinov2 import ARCHITECTURES, state_shapes
from export.readers.seeded import parse, seeded_weight
from export.readers.seeded_weights import normal
from runtime.bundle import HeldFile
from runtime.decoding.tokenizer import CaptionTokenizer


def test_options_follow_the_architecture() -> None:
    seeded = parse("seeded:dinov2_vitl14_reg,salt=a,memory=7,size=28,depth=2,attention=kkv")
    assert (seeded.name, seeded.image_size) == ("dinov2_vitl14_reg", 28)
    assert (seeded.options.salt, seeded.options.memory, seeded.architecture.depth) == ("a", 7, 2)
    assert seeded.family_options.model_dump() == {"attention": "kkv"}
    assert parse("seeded:dinov2_vitl14_reg").image_size == 518


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("seeded:resnet50", "expected an architecture of .*dinov2_vits14.*, got 'resnet50'"),
        ("seeded:clip_vitb16,224", "expected salt=, memory=, size=, depth=, decoder=, invite=, published=, got '224'"),
        ("seeded:clip_vitb16,size=big", "size: expected a whole number, got 'big'"),
        ("seeded:clip_vitb16,periods=float32", "periods: clip has no such option"),
    ],
)
def test_names_that_are_not_known_are_refused(name: str, message: str) -> None:
    with pytest.raises(CheckpointError, match=f"^{name}: {message}"):
        parse(name)


def test_seeded_numbers_depend_on_their_name_alone() -> None:
    # by hand: RandomState(crc32("decap/x") & 0x7fffffff) = RandomState(2140609961)
    expected = np.random.RandomState(2140609961).standard_normal(6).astype(np.float32).reshape(2, 3)
    np.testing.assert_array_equal(normal("decap/x", (2, 3)), expected)


@pytest.mark.parametrize(
    ("part", "shape", "first", "last"),
    [
        ("cls_token", (1, 1, 384), -0.2118586, -0.515296817),
        ("register_tokens", (1, 4, 384), -0.556709647, -0.196918175),
        ("pos_embed", (1, 1370, 384), 0.0627299845, 0.224094063),
        ("patch_embed.proj.weight", (384, 3, 14, 14), -0.0268012937, 0.00197911449),
        ("blocks.3.norm1.weight", (384,), 1.13968146, 0.983171999),
        ("blocks.3.attn.qkv.bias", (1152,), 0.00132046186, -0.0478087738),
        ("blocks.0.ls1.gamma", (384,), 0.121373661, 0.17281881),
        ("blocks.11.mlp.fc2.weight", (384, 1536), -0.0293516405, -0.0296676941),
    ],
)
def test_seeded_weights_are_those_that_the_recordings_were_made_with(
    part: str, shape: tuple[int, ...], first: float, last: float
) -> None:
    assert state_shapes(ARCHITECTURES["dinov2_vits14_reg"], 518)[part] == shape
    weight = seeded_weight(part, normal(f"dinov2_vits14_reg/{part}", shape)).ravel()
    assert weight.dtype == np.float32
    np.testing.assert_allclose(weight[[0, -1]], [first, last], rtol=1e-6)


@pytest.mark.slow
def test_seeded_checkpoints_need_no_vocabulary_and_say_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("export.readers.made_up_decoders.find_merges", lambda: None)
    checkpoint = read_checkpoint("seeded:dinov2_vits14,size=28,memory=3")
    assert "CLIP's vocabulary is not installed" in checkpoint.notes[0]
    checkpoint.tokenizer.save(str(tmp_path / "tokenizer.json"))
    tokenizer = CaptionTokenizer(HeldFile(tmp_path / "tokenizer.json"), checkpoint.eos_token_ids)
    assert tokenizer.text([17, 49406, 4, checkpoint.eos_token_ids[0], 5]) == "<17> <4>"
