"""DINOv3 files as they are published, written here: transformers' own model says what must come out."""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import DINOv3ViTConfig, DINOv3ViTModel

from export.checkpoint import CheckpointError
from export.graphs.exporter import export_graph
from export.graphs.specs import backbone_spec
from export.graphs.verification import compare
from export.models.dinov2 import IMAGENET_MEAN, IMAGENET_STD
from export.models.dinov3 import Dinov3Backbone, rotation_angles
from export.readers.backbone_family import BackboneRequest
from export.readers.dinov3 import ARCHITECTURES, FAMILY, Dinov3Options, from_state, state_shapes
from export.readers.families import find_architecture, recognize_family
from export.readers.seeded import parse, seeded_state

WIDTH, DEPTH, HEADS, SIZE = 128, 2, 2, 48
State = dict[str, Tensor]


def pixels(size: int = SIZE, count: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(size)
    return torch.randint(0, 256, (count, size, size, 3), dtype=torch.uint8, generator=generator)


def their_model(gated: bool = False) -> DINOv3ViTModel:
    torch.manual_seed(0)
    model = DINOv3ViTModel(
        DINOv3ViTConfig(
            hidden_size=WIDTH,
            intermediate_size=192 if gated else 4 * WIDTH,
            num_hidden_layers=DEPTH,
            num_attention_heads=HEADS,
            num_register_tokens=4,
            use_gated_mlp=gated,
            hidden_act="silu" if gated else "gelu",
        )
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.1)
    return model.eval()


def their_tokens(model: DINOv3ViTModel, images: Tensor) -> Tensor:
    mean, std = torch.tensor(IMAGENET_MEAN).view(3, 1, 1), torch.tensor(IMAGENET_STD).view(3, 1, 1)
    with torch.inference_mode():
        return model((images.permute(0, 3, 1, 2) / 255 - mean) / std).last_hidden_state


def their_file(model: DINOv3ViTModel, folder: Path) -> State:
    model.save_pretrained(folder)
    return load_file(folder / "model.safetensors")


def renamed(saved: State, names: dict[str, str]) -> State:
    state = {}
    for name, value in saved.items():
        for theirs, ours in names.items():
            name = re.sub(theirs, ours, name)
        state[name] = value
    return state


def hub_state(saved: State) -> State:
    """Return what transformers saves under facebookresearch/dinov3's names (published-system.md, section 11)."""
    is_gated = any("gate_proj" in name for name in saved)
    up, down = ("w2", "w3") if is_gated else ("fc1", "fc2")
    state = renamed(
        saved,
        {
            r"^embeddings\.": "",
            "register_tokens": "storage_tokens",
            "patch_embeddings": "patch_embed.proj",
            r"^layer\.": "blocks.",
            r"attention\.o_proj": "attn.proj",
            r"layer_scale(\d)\.lambda1": r"ls\1.gamma",
            "gate_proj": "w1",
            "up_proj": up,
            "down_proj": down,
        },
    )
    for block in range(DEPTH):
        attention = f"blocks.{block}.attention"
        query, key, value = (state.pop(f"{attention}.{part}_proj.weight") for part in "qkv")
        state[f"blocks.{block}.attn.qkv.weight"] = torch.cat([query, key, value])
        query, value = (state.pop(f"{attention}.{part}_proj.bias") for part in "qv")
        state[f"blocks.{block}.attn.qkv.bias"] = torch.cat([query, torch.full((WIDTH,), 5.0), value])
        state[f"blocks.{block}.attn.qkv.bias_mask"] = torch.full((3 * WIDTH,), math.nan)
    state["mask_token"] = state["mask_token"][0]
    state["rope_embed.periods"] = torch.ones(16)
    return state | {"local_cls_norm.weight": torch.ones(WIDTH), "local_cls_norm.bias": torch.ones(WIDTH)}


def timm_state(hub: State, with_biases: bool = True) -> State:
    """Return the hub's weights under timm's names, those of its models ``qkvb`` with biases."""
    only_here = ("bias_mask", "periods", "mask_token", "local_cls_norm")
    state = renamed(
        {name: value for name, value in hub.items() if not any(part in name for part in only_here)},
        {
            "storage_tokens": "reg_token",
            r"ls(\d)\.gamma": r"gamma_\1",
            "w1": "fc1_g",
            "w2": "fc1_x",
            "w3": "fc2",
        },
    )
    for block in range(DEPTH):
        query, _, value = state.pop(f"blocks.{block}.attn.qkv.bias").chunk(3)
        if with_biases:
            state |= {f"blocks.{block}.attn.q_bias": query, f"blocks.{block}.attn.v_bias": value}
    return state


def read(state: State, size: int = SIZE, options: Dinov3Options | None = None) -> Dinov3Backbone:
    return from_state(state, BackboneRequest(size, "test", None, options or Dinov3Options()))


def tokens_of(state: State, size: int = SIZE) -> Tensor:
    with torch.inference_mode():
        return read(state, size)(pixels(size))[0]


@pytest.mark.parametrize("gated", [False, True])
def test_every_layout_gives_the_tokens_of_transformers_model(gated: bool, tmp_path: Path) -> None:
    theirs = their_model(gated)
    saved = their_file(theirs, tmp_path)
    assert "layer.0.attention.q_proj.weight" in saved, "saved under the published names"
    assert "model.layer.0.attention.q_proj.weight" in theirs.state_dict(), "and called so in memory"
    expected = their_tokens(theirs, pixels())
    for state in (
        saved,
        theirs.state_dict(),
        {f"model.{name}": value for name, value in saved.items()},
        {f"model.{name}": value for name, value in theirs.state_dict().items()} | {"head.weight": torch.ones(1)},
        hub_state(saved),
        {f"backbone.{name}": value for name, value in hub_state(saved).items()},
        timm_state(hub_state(saved)),
    ):
        assert recognize_family(state, "test") is FAMILY
        assert (read(state).config.gated_width is not None) == gated
        torch.testing.assert_close(tokens_of(state), expected, rtol=1e-5, atol=1e-5)


def test_timms_files_without_biases_are_those_whose_biases_are_zero(tmp_path: Path) -> None:
    theirs = their_model()
    with torch.no_grad():
        for layer in theirs.model.layer:
            layer.attention.q_proj.bias.zero_()
            layer.attention.v_proj.bias.zero_()
    state = timm_state(hub_state(their_file(theirs, tmp_path)), with_biases=False)
    torch.testing.assert_close(tokens_of(state), their_tokens(theirs, pixels()), rtol=1e-5, atol=1e-5)
    assert not any("qkv.bias" in name for name in read(state).state_dict())


@pytest.mark.parametrize("size", [16, 80, 112])
def test_any_multiple_of_16_needs_nothing_resized(size: int, tmp_path: Path) -> None:
    theirs = their_model()
    state = their_file(theirs, tmp_path)
    torch.testing.assert_close(tokens_of(state, size), their_tokens(theirs, pixels(size)), rtol=1e-5, atol=1e-5)


def test_cls_looks_at_patches_before_they_are_rotated_with_the_models_own_heads() -> None:
    theirs, seen = their_model(), dict[str, Tensor]()
    last = theirs.model.layer[-1].attention
    for name in ("q_proj", "k_proj"):
        getattr(last, name).register_forward_hook(lambda _, __, output, name=name: seen.__setitem__(name, output))
    their_tokens(theirs, pixels())
    query, key = (seen[name].unflatten(-1, (HEADS, 64)) for name in ("q_proj", "k_proj"))
    expected = torch.einsum("bhd,bnhd->bhn", query[:, 0], key[:, 5:]) / 8
    with torch.inference_mode():
        _, logits = read(theirs.state_dict())(pixels())
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)


def test_angles_are_those_of_y_and_then_of_x_by_rising_periods() -> None:
    # 2 x 2 patches, whose centres are -0.5 and 0.5; heads 8 wide, so periods 1 and 100 ** (1 / 2) = 10
    pi = math.pi
    low, high = [-pi, -pi / 10], [pi, pi / 10]
    expected = torch.tensor([[*low, *low], [*low, *high], [*high, *low], [*high, *high]])
    torch.testing.assert_close(rotation_angles(grid=2, head_dim=8), expected)


def test_periods_may_be_rounded_as_the_hubs_files_hold_them() -> None:
    # 100 ** (1 / 16) = 1.33352, in steps of 2 ** -7: 171 / 128 = 1.3359375
    exact, rounded = (rotation_angles(1, 64, rounds)[0] for rounds in (False, True))
    assert exact.count_nonzero() == rounded.count_nonzero() == 0, "the one patch lies in the middle"
    exact, rounded = (rotation_angles(2, 64, rounds)[3, 1] for rounds in (False, True))
    assert float(exact) == pytest.approx(math.pi / 1.33352, rel=1e-5)
    assert float(rounded) == pytest.approx(math.pi / 1.3359375, rel=1e-6)


def test_the_option_decides_how_periods_are_rounded() -> None:
    state = their_model().state_dict()
    exact, rounded = (read(state, options=Dinov3Options(periods=form)) for form in ("float32", "bfloat16"))
    assert 1e-4 < (exact.rotation_cos - rounded.rotation_cos).abs().max() < 0.05
    with pytest.raises(CheckpointError, match="test: periods: input should be 'float32' or 'bfloat16', got 'fp8'"):
        FAMILY.read_options({"periods": "fp8"}, "test")


def test_cls_and_registers_are_not_rotated_and_tokens_cannot_pass_the_last_block_again() -> None:
    backbone = read(their_model().state_dict())
    assert backbone.rotation_cos.shape == backbone.rotation_sin.shape == (5 + 9, 64)
    assert (backbone.rotation_cos[:5] == 1).all()
    assert (backbone.rotation_sin[:5] == 0).all()
    assert backbone.last_block is None
    numbers = backbone.numbers
    assert (numbers.attention_heads, numbers.tokens.num_global, numbers.tokens.grid) == (HEADS, 5, 3)


def test_published_backbones_have_the_names_of_all_libraries() -> None:
    assert list(ARCHITECTURES) == [
        *("dinov3_vits16", "dinov3_vits16plus", "dinov3_vitb16", "dinov3_vitl16", "dinov3_vith16plus"),
    ]
    for name in (
        "dinov3_vitb16",
        "facebook/dinov3-vitb16-pretrain-lvd1689m",
        "vit_base_patch16_dinov3.lvd1689m",
        "timm/vit_base_patch16_dinov3_qkvb.lvd1689m",
    ):
        assert find_architecture(name) == (FAMILY, ARCHITECTURES["dinov3_vitb16"])
    base = ARCHITECTURES["dinov3_vitb16"]
    assert base.files[0].name == "dinov3_vitb16_pretrain_lvd1689m-73cec8be.pth"
    assert (base.text_space, base.default_size) == ("t2d-dinov3-b", 448)


@pytest.mark.parametrize(
    ("name", "numbers"),
    [
        ("dinov3_vits16", (384, 12, 6, None)),
        ("dinov3_vitb16", (768, 12, 12, None)),
        ("dinov3_vitl16", (1024, 24, 16, None)),
        ("dinov3_vith16plus", (1280, 32, 20, 5120)),
    ],
)
def test_published_weights_have_the_shapes_of_their_architecture(
    name: str, numbers: tuple[int, int, int, int | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("export.readers.dinov3.load_weights", lambda *_: None)  # they have no memory
    architecture = ARCHITECTURES[name]
    state = {part: torch.empty(shape, device="meta") for part, shape in state_shapes(architecture).items()}
    config = from_state(state, BackboneRequest(448, name, architecture, Dinov3Options())).config
    assert (config.embed_dim, config.depth, config.num_heads, config.gated_width) == numbers


def test_made_up_weights_follow_from_their_published_names() -> None:
    state = seeded_state(parse("seeded:dinov3_vits16,depth=1,salt=x"))
    tokens, gamma = (
        np.random.RandomState(zlib.crc32(f"xdinov3_vits16/{name}".encode()) & 0x7FFFFFFF).standard_normal(1)[0]
        for name in ("storage_tokens", "blocks.0.ls1.gamma")
    )
    assert float(state["storage_tokens"].ravel()[0]) == pytest.approx(0.5 * tokens)
    assert float(state["blocks.0.ls1.gamma"][0]) == pytest.approx(0.2 + 0.05 * gamma)
    backbone = from_state(state, BackboneRequest(32, "made up", None, Dinov3Options()))
    query, key, value = backbone.blocks[0].get_parameter("attn.qkv.bias").chunk(3)
    assert (key == 0).all()
    assert query.any()
    assert value.any()


def without(name: str) -> Callable[[State], object]:
    return lambda state: state.pop(name)


def put(name: str, value: Tensor) -> Callable[[State], object]:
    return lambda state: state.__setitem__(name, value)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (without("cls_token"), "cls_token is missing"),
        (without("blocks.1.norm1.bias"), "blocks.1.norm1.bias is missing"),
        (without("blocks.1.attn.qkv.bias"), "blocks.1.attn.qkv.bias is missing"),
        (without("storage_tokens"), "expected the weights of a DINOv3 backbone, storage_tokens among them"),
        (put("storage_tokens", torch.ones(4)), r"register_tokens: expected \(1, registers, D\), got \(4,\)"),
        (
            put("patch_embed.proj.weight", torch.ones(5)),
            r"patch_embed.proj.weight: expected \(D, 3, patch, patch\) with",
        ),
        (put("blocks.1.attn.qkv.bias", torch.ones(6)), r"blocks.1.attn.qkv.bias: expected shape \(384,\), got \(6,\)"),
        (put("blocks.1.attn.qkv.bias", torch.ones(())), r"blocks.1.attn.qkv.bias: expected shape \(384,\), got \(\)"),
        (
            put("blocks.1.mlp.w1.weight", torch.ones(3, 3)),
            "blocks.1.mlp.w1.weight is not a weight of this architecture",
        ),
        (put("blocks.1.attn.extra", torch.ones(3)), "blocks.1.attn.extra is not a weight of this architecture"),
        (put("norm.extra", torch.ones(3)), "norm.extra is not a weight of this architecture"),
    ],
)
def test_files_of_another_layout_are_refused_by_key(
    spoil: Callable[[State], object], message: str, tmp_path: Path
) -> None:
    state = hub_state(their_file(their_model(), tmp_path))
    spoil(state)
    with pytest.raises(CheckpointError, match=f"test: {message}"):
        read(state)


def test_a_part_of_timms_biases_is_refused(tmp_path: Path) -> None:
    state = timm_state(hub_state(their_file(their_model(), tmp_path)))
    del state["blocks.1.attn.v_bias"]
    with pytest.raises(CheckpointError, match="test: blocks.1.attn.v_bias is missing"):
        read(state)


def test_other_sizes_and_other_backbones_are_refused() -> None:
    state = their_model().state_dict()
    for size in (0, -16, 40):
        with pytest.raises(CheckpointError, match=f"size {size}: expected a multiple of the patch size, 16"):
            read(state, size)
    request = BackboneRequest(SIZE, "test", ARCHITECTURES["dinov3_vits16"], Dinov3Options())
    with pytest.raises(CheckpointError, match="test: expected dinov3_vits16, whose output_dim is 384, got 128"):
        from_state(state, request)


def test_the_exported_graph_computes_what_the_module_does(tmp_path: Path) -> None:
    backbone = read(their_model(gated=True).state_dict())
    record = export_graph(backbone_spec(backbone), tmp_path)
    assert record.max_error < 1e-5
    assert compare(tmp_path / record.file, backbone, (pixels(count=3),)) < 1e-5
