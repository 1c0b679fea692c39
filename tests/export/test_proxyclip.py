"""ProxyCLIP against transformers' own CLIP, DINOv2 and ViT, put together here as published."""

from __future__ import annotations

import math
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    ViTConfig,
    ViTModel,
)

from export.checkpoint import CheckpointError
from export.graphs.exporter import export_graph
from export.graphs.specs import backbone_spec
from export.graphs.verification import compare
from export.models.clip import CLIP_MEAN, CLIP_STD
from export.models.dinov2 import IMAGENET_MEAN, IMAGENET_STD
from export.models.proxyclip import ProxyclipBackbone, ProxyclipConfig
from export.readers.backbone_family import BackboneRequest
from export.readers.families import recognize_family
from export.readers.proxyclip import ARCHITECTURES, FAMILY, ProxyclipOptions, from_state, state_shapes
from export.text_spaces import TEXT_SPACES

WIDTH, DEPTH, SIZE, TRAINED = 128, 2, 56, 4
CLIP_SIZE = 48
"""The part of the image that is whole patches of CLIP."""
NUMBERS: dict[str, Any] = {"hidden_size": WIDTH, "num_hidden_layers": DEPTH, "num_attention_heads": 2}
State = dict[str, Tensor]


def pixels(count: int) -> Tensor:
    generator = torch.Generator().manual_seed(count)
    return torch.randint(0, 256, (count, SIZE, SIZE, 3), dtype=torch.uint8, generator=generator)


def normalised(images: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    return (images.permute(0, 3, 1, 2) / 255 - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)


def randomized(model: Any, scale: float = 0.1) -> Any:
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape) * scale)
    return model.eval()


def dino_state(model: ViTModel) -> State:
    """Return transformers' weights by the names of facebookresearch/dino."""
    names = {
        r"^embeddings\.cls_token": "cls_token",
        r"^embeddings\.position_embeddings": "pos_embed",
        r"^embeddings\.patch_embeddings": "patch_embed",
        "projection": "proj",
        r"^layers\.": "blocks.",
        r"attention\.o_proj": "attn.proj",
        "layernorm_before": "norm1",
        "layernorm_after": "norm2",
        r"^layernorm": "norm",
    }
    state = {}
    for name, value in model.state_dict().items():
        for theirs, ours in names.items():
            name = re.sub(theirs, ours, name)
        state[name] = value
    for block in range(DEPTH):
        for part in ("weight", "bias"):
            parts = [state.pop(f"blocks.{block}.attention.{one}_proj.{part}") for one in "qkv"]
            state[f"blocks.{block}.attn.qkv.{part}"] = torch.cat(parts)
    return state


def dinov2_state(model: Dinov2WithRegistersModel, folder: Path) -> State:
    model.save_pretrained(folder)
    return load_file(folder / "model.safetensors")


@pytest.fixture(scope="module", params=["dino", "dinov2"])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """Their towers, the state dict of their weights by published names, and the registers of the DINO."""
    if request.param == "dino":
        vision = randomized(
            ViTModel(
                ViTConfig(**NUMBERS, intermediate_size=4 * WIDTH, image_size=SIZE, patch_size=8, layer_norm_eps=1e-6),
                add_pooling_layer=False,
            )
        )
        vision_state = dino_state(vision)
    else:
        vision = randomized(
            Dinov2WithRegistersModel(Dinov2WithRegistersConfig(**NUMBERS, image_size=SIZE, patch_size=14))
        )
        vision_state = dinov2_state(vision, tmp_path_factory.mktemp("dinov2"))
    clip = randomized(
        CLIPVisionModelWithProjection(
            CLIPVisionConfig(
                **NUMBERS, intermediate_size=4 * WIDTH, image_size=CLIP_SIZE, patch_size=16, projection_dim=32
            )
        )
    )
    trained = torch.randn(1 + TRAINED**2, WIDTH, generator=torch.Generator().manual_seed(3))
    state = clip.state_dict() | {"vision_model.embeddings.position_embedding.weight": trained}
    state |= {f"vfm.{name}": value for name, value in vision_state.items()}
    with torch.no_grad():
        clip.vision_model.embeddings.position_embedding.weight.copy_(resized(trained))
    return SimpleNamespace(clip=clip, vision=vision, state=state, num_global=1 if request.param == "dino" else 5)


def resized(table: Tensor) -> Tensor:
    """Return CLIP's positions for 3 x 3 patches by the old way of DINO: a factor with an offset, not antialiased."""
    grid = table[1:].T.reshape(1, WIDTH, TRAINED, TRAINED)
    factor = (CLIP_SIZE // 16 + 0.1) / TRAINED
    grid = F.interpolate(grid, scale_factor=(factor, factor), mode="bicubic", antialias=False)
    return torch.cat([table[:1], grid.flatten(2)[0].T])


def their_tokens(pair: SimpleNamespace, images: Tensor, clip_images: Tensor, over_batch: bool = False) -> Tensor:
    """Return the tokens as published (published-system.md, section 13)."""
    clip = pair.clip.vision_model
    with torch.inference_mode():
        seen = F.normalize(pair.vision(images).last_hidden_state[:, pair.num_global :], dim=-1)
        x = clip(clip_images[:, :, :CLIP_SIZE, :CLIP_SIZE], output_hidden_states=True).hidden_states[-2]
        last = clip.encoder.layers[-1]
        values = last.self_attn.v_proj(last.layer_norm1(x))[:, 1:]
        grid = math.isqrt(seen.shape[1])
        values = F.interpolate(values.transpose(1, 2).unflatten(2, (3, 3)), size=(grid, grid), mode="bilinear")
        similarity = seen @ seen.transpose(1, 2)
        mean = similarity.mean() if over_batch else similarity.mean(dim=(1, 2), keepdim=True)
        similarity = (similarity - 1.2 * mean) * 3
        similarity[similarity < 0] = -math.inf
        mixed = similarity.softmax(-1) @ values.flatten(2).transpose(1, 2)
        tokens = pair.clip.visual_projection(clip.post_layernorm(last.self_attn.out_proj(mixed)))
        return F.normalize(tokens, dim=-1)


def read(state: State, **options: Any) -> ProxyclipBackbone:
    return from_state(state, BackboneRequest(SIZE, "test", None, ProxyclipOptions(**options)))


def test_each_image_is_mixed_by_itself(pair: SimpleNamespace) -> None:
    assert recognize_family(pair.state, "test") is FAMILY
    images, backbone = pixels(2), read(pair.state, pixels="imagenet")
    shown = normalised(images, IMAGENET_MEAN, IMAGENET_STD)
    expected = their_tokens(pair, shown, shown)
    with torch.inference_mode():
        (together,) = backbone(images)
        (alone,) = backbone(images[1:])
    torch.testing.assert_close(together, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(alone, together[1:], rtol=1e-5, atol=1e-5)


def test_the_published_way_averages_over_the_batch(pair: SimpleNamespace) -> None:
    images = torch.cat([pixels(1), torch.full_like(pixels(1), 90)])  # a uniform image raises the mean
    shown = normalised(images, IMAGENET_MEAN, IMAGENET_STD)
    backbone = read(pair.state, published=True, pixels="imagenet")
    with torch.inference_mode():
        (got,), (alone,) = backbone(images), backbone(images[:1])
    torch.testing.assert_close(got[:1], their_tokens(pair, shown, shown, over_batch=True)[:1], rtol=1e-5, atol=1e-5)
    assert (got[:1] - alone).abs().max() > 1e-3


def test_clip_gets_pixels_of_its_own(pair: SimpleNamespace) -> None:
    images = pixels(2)
    expected = their_tokens(
        pair, normalised(images, IMAGENET_MEAN, IMAGENET_STD), normalised(images, CLIP_MEAN, CLIP_STD)
    )
    with torch.inference_mode():
        torch.testing.assert_close(read(pair.state)(images)[0], expected, rtol=1e-5, atol=1e-5)


def test_there_is_neither_cls_nor_attention(pair: SimpleNamespace) -> None:
    backbone = read(pair.state)
    numbers = backbone.numbers
    assert numbers.tokens.global_tokens == ()
    assert numbers.tokens.cls_index is None
    assert numbers.attention_heads == 0
    assert backbone.last_block is None
    assert numbers.tokens.grid * numbers.patch_size == SIZE
    assert (numbers.output_dim, numbers.embed_dim) == (32, WIDTH)


def mixing_weights(patches: Tensor, config: ProxyclipConfig | None = None) -> Tensor:
    towers = SimpleNamespace(config=config or ProxyclipConfig())
    return ProxyclipBackbone.mixing_weights(towers, patches)  # type: ignore[arg-type]


def test_patches_take_of_those_that_are_more_similar_than_most() -> None:
    # Two pairs of opposite directions: similarities of a row are 1, 1, -1, -1, their mean is 0.
    patches = torch.tensor([[[2.0, 0.0], [3.0, 0.0], [-1.0, 0.0], [-5.0, 0.0]]])
    half = torch.tensor([[0.5, 0.5], [0.5, 0.5]])
    torch.testing.assert_close(mixing_weights(patches)[0], torch.block_diag(half, half))
    # At right angles they are 1, 0, mean 0.5: above 0.6 there is only the patch itself.
    torch.testing.assert_close(mixing_weights(torch.eye(2)[None])[0], torch.eye(2))


def test_a_patch_keeps_itself_where_all_are_too_similar_to_tell_apart() -> None:
    """1.2 times the mean is above 1 there, and the published code returns NaN."""
    angles = torch.tensor([0.0, 0.2, 0.4])  # cosines 0.98 and 0.92: the mean is 0.97, and 1.2 times it 1.17
    patches = torch.stack([angles.cos(), angles.sin()], dim=-1)[None]
    torch.testing.assert_close(mixing_weights(patches)[0], torch.eye(3))
    same = mixing_weights(torch.full((1, 4, 8), 0.3))
    assert same.isfinite().all()
    torch.testing.assert_close(same.sum(-1), torch.ones(1, 4))
    batch = torch.cat([patches, patches.roll(1, 1)])
    assert mixing_weights(batch, ProxyclipConfig(averages_batch=True)).isfinite().all()


def test_uniform_images_have_tokens(pair: SimpleNamespace) -> None:
    with torch.inference_mode():
        (tokens,) = read(pair.state)(torch.zeros(1, SIZE, SIZE, 3, dtype=torch.uint8))
    torch.testing.assert_close(tokens.norm(dim=-1), torch.ones(tokens.shape[:2]))


def test_banks_are_clips_with_rows_and_outputs_of_length_1_unless_as_published() -> None:
    for architecture in ARCHITECTURES.values():
        assert architecture.text_space == "clip-b16"
        space = FAMILY.space_of(architecture, ProxyclipOptions())
        assert (space.width, space.unit_rows, space.unit_output) == (512, True, True)
        space = FAMILY.space_of(architecture, ProxyclipOptions(raw_memory=True))
        assert (space.unit_rows, space.unit_output) == (False, False)
    assert not TEXT_SPACES["clip-b16"].unit_output, "CLIP's own vectors stay shorter"


def test_configurations_name_both_towers() -> None:
    assert FAMILY.chosen_by({"dino_model": "dinov2_vitb14_reg"}) is None
    for vision in ("dino", "dinov2"):
        settings = {"proxyclip_clipmodel": "ViT-B/16", "proxyclip_vfm": vision}
        assert FAMILY.chosen_by(settings) == f"proxyclip_vitb16_{vision}"
    with pytest.raises(CheckpointError, match="proxyclip_vfm: expected dino or dinov2, got 'sam'"):
        FAMILY.chosen_by({"proxyclip_clipmodel": "ViT-B/16", "proxyclip_vfm": "sam"})
    with pytest.raises(CheckpointError, match="proxyclip_clipmodel: expected ViT-B/16, got 'ViT-L/14'"):
        FAMILY.chosen_by({"proxyclip_clipmodel": "ViT-L/14", "proxyclip_vfm": "dino"})


def test_published_weights_are_those_of_both_files() -> None:
    dino, dinov2 = (ARCHITECTURES[f"proxyclip_vitb16_{vision}"] for vision in ("dino", "dinov2"))
    assert [file.name for file in dino.files] == ["ViT-B-16.pt", "dino_vitbase8_pretrain.pth"]
    assert [file.name for file in dinov2.files] == ["ViT-B-16.pt", "dinov2_vitb14_reg4_pretrain.pth"]
    assert (dino.default_size, dinov2.default_size) == (296, 518)
    shapes = state_shapes(dino, 296)
    assert shapes["visual.conv1.weight"] == (768, 3, 16, 16)
    assert shapes["vfm.pos_embed"] == (1, 785, 768)
    assert shapes["vfm.patch_embed.proj.weight"] == (768, 3, 8, 8)
    assert "vfm.blocks.0.ls1.gamma" not in shapes
    assert "vfm.blocks.11.ls1.gamma" in state_shapes(dinov2, 518)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("vision_model.pre_layrnorm.bias", "test: norm_pre.bias is missing"),
        ("vision_model.encoder.layers.1.self_attn.v_proj.weight", "test: blocks.1.attn.qkv.weight: self_attn.v_proj"),
        ("vfm.{cls_token}", "test: DINO: cls_token is missing"),
    ],
)
def test_missing_weights_are_named_with_their_tower(pair: SimpleNamespace, name: str, message: str) -> None:
    spoilt = dict(pair.state)
    del spoilt[name.format(cls_token="cls_token" if pair.num_global == 1 else "embeddings.cls_token")]
    with pytest.raises(CheckpointError, match=message):
        read(spoilt)


def test_sizes_that_are_not_whole_patches_of_the_dino_are_refused(pair: SimpleNamespace) -> None:
    patch = read(pair.state).numbers.patch_size
    for size in (0, SIZE + 2):
        with pytest.raises(CheckpointError, match=f"size {size}: expected a multiple of the patch size, {patch}"):
            from_state(pair.state, BackboneRequest(size, "test", None, ProxyclipOptions()))
    with pytest.raises(CheckpointError, match=f"size {patch}: expected at least 16, the patch size of CLIP"):
        from_state(pair.state, BackboneRequest(patch, "test", None, ProxyclipOptions()))


@pytest.mark.slow
def test_the_exported_graph_computes_what_the_module_does(pair: SimpleNamespace, tmp_path: Path) -> None:
    backbone = read(pair.state, published=pair.num_global == 1)  # each way once
    record = export_graph(backbone_spec(backbone), tmp_path)
    assert record.max_error < 1e-5
    assert compare(tmp_path / record.file, backbone, (pixels(3),)) < 1e-5
