"""DINOv2 files as they are published, written here: transformers' own models say what must come out."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import Dinov2Config as PlainConfig
from transformers import Dinov2ForImageClassification, Dinov2Model, PreTrainedModel
from transformers import Dinov2WithRegistersConfig as RegistersConfig
from transformers import Dinov2WithRegistersForImageClassification as RegistersClassifier
from transformers import Dinov2WithRegistersModel as RegistersModel

from export.checkpoint import CheckpointError
from export.models.dinov2 import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Dinov2Backbone,
    Dinov2Config,
    resize_position_embedding,
)
from export.readers.backbone_family import WeightFile
from export.readers.dinov2 import ARCHITECTURES, backbone_from_state, read_dinov2, state_shapes

WIDTH, DEPTH, SIZE = 128, 2, 56
PIXELS = torch.randint(0, 256, (2, SIZE, SIZE, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
KINDS = [(RegistersModel, RegistersConfig), (Dinov2Model, PlainConfig)]


def their_model(model: type, config: type, gated: bool) -> PreTrainedModel:
    torch.manual_seed(0)
    made = model(
        config(
            hidden_size=WIDTH,
            num_hidden_layers=DEPTH,
            num_attention_heads=2,
            image_size=SIZE,
            patch_size=14,
            use_swiglu_ffn=gated,
        )
    )
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.1)
    return made.eval()


def hub_state(saved: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return what transformers saves under facebookresearch/dinov2's names (published-system.md, section 2)."""
    state: dict[str, Tensor] = {}
    for name, value in saved.items():
        name = re.sub(r"^encoder\.layer", "blocks", name).removeprefix("embeddings.").replace("lambda1", "gamma")
        for theirs, ours in [
            ("position_embeddings", "pos_embed"),
            ("patch_embeddings.projection", "patch_embed.proj"),
            ("layernorm", "norm"),
            ("layer_scale", "ls"),
            ("attention.output.dense", "attn.proj"),
            ("weights_in", "w12"),
            ("weights_out", "w3"),
        ]:
            name = name.replace(theirs, ours)
        state[name] = value
    for block in range(DEPTH):
        for part in ("weight", "bias"):
            parts = [state.pop(f"blocks.{block}.attention.attention.{k}.{part}") for k in ("query", "key", "value")]
            state[f"blocks.{block}.attn.qkv.{part}"] = torch.cat(parts)
    return state


def tokens_of(backbone: Dinov2Backbone) -> Tensor:
    with torch.inference_mode():
        return backbone(PIXELS)[0]


def their_tokens(model: PreTrainedModel) -> Tensor:
    mean, std = torch.tensor(IMAGENET_MEAN).view(3, 1, 1), torch.tensor(IMAGENET_STD).view(3, 1, 1)
    with torch.inference_mode():
        return model((PIXELS.permute(0, 3, 1, 2) / 255 - mean) / std).last_hidden_state


@pytest.mark.parametrize(("model", "config"), KINDS)
@pytest.mark.parametrize("gated", [False, True])
def test_both_layouts_give_the_tokens_of_transformers_model(
    model: type, config: type, gated: bool, tmp_path: Path
) -> None:
    theirs = their_model(model, config, gated)
    theirs.save_pretrained(tmp_path / "folder")
    saved = load_file(tmp_path / "folder" / "model.safetensors")
    assert "encoder.layer.0.attention.attention.query.weight" in saved, "saved under the published names"
    torch.save(hub_state(saved), tmp_path / "hub.pth")
    for path in (tmp_path / "folder", tmp_path / "folder" / "model.safetensors", tmp_path / "hub.pth"):
        backbone = read_dinov2(path, SIZE)
        assert backbone.config.num_registers == (4 if model is RegistersModel else 0)
        assert (backbone.config.swiglu_width is not None) == gated
        torch.testing.assert_close(tokens_of(backbone), their_tokens(theirs), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("model", "config"), [(RegistersClassifier, RegistersConfig), (Dinov2ForImageClassification, PlainConfig)]
)
def test_the_backbone_of_a_classifier_is_read_without_its_head(model: type, config: type, tmp_path: Path) -> None:
    theirs = their_model(model, config, gated=False)
    theirs.save_pretrained(tmp_path)
    torch.testing.assert_close(
        tokens_of(read_dinov2(tmp_path, SIZE)), their_tokens(theirs.base_model), rtol=1e-4, atol=1e-4
    )


def test_weights_in_several_files_are_read_by_their_index(tmp_path: Path) -> None:
    theirs = their_model(*KINDS[0], gated=False)
    theirs.save_pretrained(tmp_path, max_shard_size="200KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    torch.testing.assert_close(tokens_of(read_dinov2(tmp_path, SIZE)), their_tokens(theirs), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("has_registers", [True, False])
def test_positions_are_resized_by_the_rule_of_the_kind(has_registers: bool, tmp_path: Path) -> None:
    theirs = their_model(*KINDS[0 if has_registers else 1], gated=False)
    theirs.save_pretrained(tmp_path)
    trained = load_file(tmp_path / "model.safetensors")["embeddings.position_embeddings"]
    backbone = read_dinov2(tmp_path, 84)
    torch.testing.assert_close(backbone.pos_embed.detach(), resize_position_embedding(trained, 6, has_registers))


def test_models_without_registers_resize_positions_by_a_scale_factor() -> None:
    # (8 + 0.1) / 4 samples a little nearer to each corner than 8 / 4 does: the two rules must differ, slightly
    pos_embed = torch.randn(1, 1 + 16, 4, generator=torch.Generator().manual_seed(0))
    old, new = (resize_position_embedding(pos_embed, 8, has_registers=flag) for flag in (False, True))
    assert old.shape == new.shape == (1, 65, 4)
    assert 1e-3 < (old - new).abs().max() < 0.5
    torch.testing.assert_close(resize_position_embedding(pos_embed, 4, has_registers=True), pos_embed)


def test_the_last_blocks_queries_keys_and_values_may_be_taken_in_another_order(tmp_path: Path) -> None:
    their_model(*KINDS[0], gated=False).save_pretrained(tmp_path)
    plain, reordered = read_dinov2(tmp_path, SIZE), read_dinov2(tmp_path, SIZE, attention="kkv")
    for name in ("attn.qkv.weight", "attn.qkv.bias"):
        _, key, value = plain.last_block.get_parameter(name).chunk(3)
        expected = torch.cat([key, key, value])
        torch.testing.assert_close(reordered.last_block.get_parameter(name).data, expected, rtol=0, atol=0)
    first = "blocks.0.attn.qkv.weight"
    torch.testing.assert_close(reordered.get_parameter(first), plain.get_parameter(first), rtol=0, atol=0)
    torch.save(
        hub_state(load_file(tmp_path / "model.safetensors")) | {"blocks.1.attn.qkv.bias": torch.ones(2)},
        tmp_path / "x.pth",
    )
    with pytest.raises(CheckpointError, match=r"x.pth: blocks.1.attn.qkv.bias: expected 384 rows, got \(2,\)"):
        read_dinov2(tmp_path / "x.pth", SIZE, attention="kkv")
    with pytest.raises(CheckpointError, match="three of the letters q, k, v, such as kkv, got 'kx'"):
        read_dinov2(tmp_path, SIZE, attention="kx")


def test_the_hubs_files_and_repositories_have_their_published_names() -> None:
    assert len(ARCHITECTURES) == 8
    giant, small = ARCHITECTURES["dinov2_vitg14_reg"], ARCHITECTURES["dinov2_vits14"]
    assert (giant.output_dim, giant.depth, giant.num_registers, giant.swiglu_width) == (1536, 40, 4, 4096)
    assert giant.files == (
        WeightFile(
            "dinov2_vitg14_reg4_pretrain.pth", "facebook/dinov2-with-registers-giant", seed="dinov2_vitg14_reg/"
        ),
    )
    assert small.files == (WeightFile("dinov2_vits14_pretrain.pth", "facebook/dinov2-small", seed="dinov2_vits14/"),)


@pytest.mark.parametrize(
    ("size", "heads", "attention_heads"), [("s", 6, 6), ("b", 12, 16), ("l", 16, 16), ("g", 24, 16)]
)
@pytest.mark.parametrize("suffix", ["", "_reg"])
def test_the_cls_attention_is_split_as_published(size: str, suffix: str, heads: int, attention_heads: int) -> None:
    architecture = ARCHITECTURES[f"dinov2_vit{size}14{suffix}"]
    state = {part: torch.empty(shape, device="meta") for part, shape in state_shapes(architecture, 518).items()}
    config = backbone_from_state(state, 518, "published", architecture).config
    assert (config.num_heads, config.attention_heads) == (heads, attention_heads)


def test_a_backbone_that_was_never_published_keeps_its_own_heads() -> None:
    state = Dinov2Backbone(Dinov2Config(192, 1, 3, num_registers=4, image_size=28, attention_heads=3)).state_dict()
    config = backbone_from_state(state, 28, "own").config
    assert (config.num_heads, config.attention_heads) == (3, 3)


def without(name: str) -> Callable[[dict[str, Tensor]], None]:
    return lambda state: state.__delitem__(name)


def put(name: str, value: Tensor) -> Callable[[dict[str, Tensor]], None]:
    return lambda state: state.__setitem__(name, value)


LAYER = "encoder.layer.1"


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            without(f"{LAYER}.attention.attention.key.weight"),
            r"blocks.1.attn.qkv.weight: the key of that layer is miss",
        ),
        (without(f"{LAYER}.norm1.bias"), "blocks.1.norm1.bias is missing"),
        (without("embeddings.position_embeddings"), "pos_embed is missing"),
        (put(f"{LAYER}.norm1.bias", torch.ones(3)), r"blocks.1.norm1.bias: expected shape \(128,\), got \(3,\)"),
        (put(f"{LAYER}.mlp.fc3.bias", torch.ones(3)), "encoder.layer.1.mlp.fc3.bias is not a weight of DINOv2"),
        (put("embeddings.extra", torch.ones(3)), "embeddings.extra is not a weight of DINOv2"),
    ],
)
def test_transformers_files_of_another_layout_are_refused_by_key(
    spoil: Callable[[dict[str, Tensor]], None], message: str, tmp_path: Path
) -> None:
    their_model(*KINDS[0], gated=False).save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    state = load_file(path)
    spoil(state)
    save_file(state, path)
    with pytest.raises(CheckpointError, match=f"model.safetensors: {message}"):
        read_dinov2(path, SIZE)


def test_a_backbone_that_is_not_the_named_one_is_refused(tmp_path: Path) -> None:
    their_model(*KINDS[0], gated=False).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="expected dinov2_vits14_reg4, whose output_dim is 384, got 128"):
        read_dinov2(tmp_path, SIZE, ARCHITECTURES["dinov2_vits14_reg"])


def test_folders_and_files_without_weights_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="expected model.safetensors or model.safetensors.index.json in it"):
        read_dinov2(tmp_path, SIZE)
    (tmp_path / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(CheckpointError, match="model.safetensors: not a safetensors file"):
        read_dinov2(tmp_path, SIZE)
    with pytest.raises(CheckpointError, match="gone.safetensors: no such file"):
        read_dinov2(tmp_path / "gone.safetensors", SIZE)
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "model.safetensors.index.json").write_text("[]")
    with pytest.raises(CheckpointError, match="not an index of safetensors files"):
        read_dinov2(tmp_path, SIZE)
