"""Checkpoints: what the readers accept, and that they say which file and which key is wrong."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer

from export.checkpoint import Checkpoint, CheckpointError
from export.models.decap_decoder import DecapStep
from export.models.dinov2 import Dinov2Backbone, Dinov2Config
from export.readers import DEMO_CONFIG, read_checkpoint
from export.readers.clip_bpe import find_merges, read_clip_bpe
from export.readers.decap import read_decap
from export.readers.dinov2 import read_dinov2
from tests.export.conftest import change_config

needs_merges = pytest.mark.skipif(find_merges() is None, reason="needs pip install --no-deps open_clip_torch")


def test_the_demo_is_of_the_published_layout() -> None:
    demo = read_checkpoint("demo")
    assert isinstance(demo.backbone, Dinov2Backbone)
    assert isinstance(demo.decoder, DecapStep)
    backbone, decoder, memory = demo.backbone.config, demo.decoder.config, demo.memory
    assert (backbone.patch_size, backbone.num_registers) == (14, 4)
    assert 224 <= backbone.image_size <= 336
    assert 3e6 <= sum(parameter.numel() for parameter in demo.backbone.parameters()) <= 6e6
    assert decoder.text_vocab_size == demo.tokenizer.get_vocab_size()
    assert memory is not None
    assert memory.width == backbone.embed_dim
    assert 2000 <= sum(len(captions) for _, captions in memory.rows()) < 10000
    assert sum(file.stat().st_size for file in DEMO_CONFIG.parent.rglob("*")) < 16e6


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("dmo", "checkpoint 'dmo': expected demo, seeded:ARCHITECTURE"),
        ("", "expected demo"),
        ("missing.yaml", "missing.yaml: no such file"),
        ("seeded:dinov2_vitx14", "expected an architecture of dinov2_vits14, dinov2_vits14_reg"),
        ("seeded:dinov2_vits14_reg,size=big", "size: expected a whole number, got 'big'"),
        ("seeded:dinov2_vits14_reg,colour=red", "colour: dinov2 has no such option; it has attention"),
        ("seeded:dinov2_vits14_reg,size=100", "size 100: expected a multiple of the patch size, 14"),
    ],
)
def test_unknown_checkpoints_are_refused(name: str, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint(name)


def rewrite(path: Path, **changes: torch.Tensor | None) -> None:
    state = torch.load(path, weights_only=True)
    for name, value in changes.items():
        key = name.replace("__", ".")
        if value is None:
            del state[key]
        else:
            state[key] = value
    torch.save(state, path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cls_token": None}, r"\.pth: cls_token is missing; expected it with shape \(1, 1, 192\)"),
        ({"blocks__3__norm1__bias": None}, "blocks.3.norm1.bias is missing"),
        ({"norm__weight": torch.ones(5)}, r"norm.weight: expected shape \(192,\), got \(5,\)"),
        ({"head__weight": torch.ones(5)}, "head.weight is not a weight of this architecture"),
        ({"patch_embed__proj__weight": None}, "patch_embed.proj.weight is missing"),
        ({"patch_embed__proj__weight": torch.ones(100, 3, 14, 14)}, "D a multiple of 64, got"),
        ({"register_tokens": torch.ones(5)}, r"register_tokens: expected 3 axes, got shape \(5,\)"),
        ({"pos_embed": torch.ones(1, 12, 192)}, r"pos_embed: expected \(1, 1 \+ g \* g, D\), got \(1, 12, 192\)"),
    ],
)
def test_a_backbone_of_another_layout_is_refused_by_key(
    demo_files: Path, changes: dict[str, torch.Tensor | None], message: str
) -> None:
    path = demo_files / "dinov2_vitdemo14_reg4.pth"
    rewrite(path, **changes)
    with pytest.raises(CheckpointError, match=message):
        read_dinov2(path, 224)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"clip_project__model__0__bias": None}, r"decoder.pt: clip_project.model.0.bias is missing"),
        ({"decoder__transformer__wte__weight": None}, "decoder.transformer.wte.weight is missing"),
        ({"decoder__transformer__h__2__ln_1__bias": torch.ones(3)}, r"h.2.ln_1.bias: expected shape .* got \(3,\)"),
        ({"decoder__lm_head__weight": torch.ones(170, 128)}, "lm_head.weight: expected the values of .*wte.weight"),
    ],
)
def test_a_decoder_of_another_layout_is_refused_by_key(
    demo_files: Path, changes: dict[str, torch.Tensor | None], message: str
) -> None:
    rewrite(demo_files / "decoder.pt", **changes)
    with pytest.raises(CheckpointError, match=message):
        read_decap(demo_files / "decoder.pt", text_vocab_size=170)


def test_a_decoder_with_fewer_words_than_the_tokenizer_is_refused(demo_files: Path) -> None:
    with pytest.raises(CheckpointError, match="at least 1000 rows, the tokenizer's tokens, got 1"):
        read_decap(demo_files / "decoder.pt", text_vocab_size=1000)


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (print, ("code from a pickle ran",))


@pytest.mark.parametrize("contents", [b"", b"not weights", pickle.dumps(Evil(), 2), pickle.dumps([1, 2], 2)])
def test_a_file_that_holds_no_weights_is_refused_and_not_run(
    tmp_path: Path, contents: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "weights.pth"
    path.write_bytes(contents)
    with pytest.raises(CheckpointError, match=r"weights.pth: (not a file of weights|expected a state dict)"):
        read_dinov2(path, 224)
    assert "ran" not in capsys.readouterr().out


def test_a_missing_weights_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="gone.pth: no such file"):
        read_dinov2(tmp_path / "gone.pth", 224)


def test_half_weights_are_read_as_float32(tmp_path: Path) -> None:
    config = Dinov2Config(embed_dim=64, depth=1, num_heads=1, num_registers=0, image_size=28, attention_heads=1)
    backbone = Dinov2Backbone(config).half()
    torch.save(backbone.state_dict() | {"mask_token": torch.zeros(1, 64)}, tmp_path / "half.pth")
    read = read_dinov2(tmp_path / "half.pth", 28)
    assert {parameter.dtype for parameter in read.parameters()} == {torch.float32}
    assert read.config == config


def read_with(folder: Path, **settings: object) -> Checkpoint:
    return read_checkpoint(str(change_config(folder, **settings)))


def test_a_configuration_without_memory_gives_a_checkpoint_without_one(demo_files: Path) -> None:
    assert read_with(demo_files, support_memory_size=0).memory is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"decap_weights": None}, "config.yaml: decap_weights is missing"),
        ({"decap_weights": "other.pt"}, "missing other.pt .decap_weights, the decoder.: not in .*--checkpoint-dir"),
        ({"tokenizer": "decoder.pt"}, "decoder.pt: not a tokenizer"),
        ({"crop_dim": 225}, "size 225: expected a multiple of the patch size"),
        ({"crop_dim": "wide"}, "config.yaml: crop_dim: expected a whole number of at least 1, got 'wide'"),
    ],
)
def test_a_configuration_that_names_what_is_not_there_is_refused(
    demo_files: Path, settings: dict[str, object], message: str
) -> None:
    with pytest.raises(CheckpointError, match=message):
        read_with(demo_files, **settings)


@pytest.mark.parametrize("text", ["[1, 2]", "a: [", ""])
def test_a_file_that_is_no_configuration_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(CheckpointError, match=r"config.yaml: (not a YAML file|expected a Patch-ioner configuration)"):
        read_checkpoint(str(tmp_path / "config.yaml"))


@needs_merges
def test_clips_vocabulary_has_the_published_ids() -> None:
    tokenizer: Tokenizer = read_clip_bpe()
    assert tokenizer.get_vocab_size() == 49408
    assert tokenizer.token_to_id("<|startoftext|>") == 49406
    assert tokenizer.token_to_id("<|endoftext|>") == 49407
    assert tokenizer.encode("a photo of a cat").ids == [49406, 320, 1125, 539, 320, 2368, 49407]
    assert tokenizer.decode([320, 1125, 539, 320, 2368]).replace("</w>", " ") == "a photo of a cat "


def test_a_file_that_is_not_clips_merges_is_refused(tmp_path: Path) -> None:
    (tmp_path / "merges.gz").write_bytes(b"no")
    with pytest.raises(CheckpointError, match="merges.gz: not CLIP's merges"):
        read_clip_bpe(tmp_path / "merges.gz")
