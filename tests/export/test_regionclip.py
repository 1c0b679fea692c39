"""RegionCLIP's ResNet against the same computed plainly, with its norms apart and torch's own attention."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from zlib import crc32

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from export.checkpoint import CheckpointError
from export.graphs.exporter import export_graph
from export.graphs.specs import backbone_spec
from export.models.clip import CLIP_MEAN, CLIP_STD
from export.models.regionclip import RegionClipBackbone
from export.readers.backbone_family import BackboneRequest, WeightFile
from export.readers.configured_backbone import ConfiguredBackbone, configured_backbone
from export.readers.families import recognize_family
from export.readers.regionclip import (
    ARCHITECTURES,
    FAMILY,
    RegionClipArchitecture,
    RegionClipOptions,
    from_state,
    state_shapes,
)
from export.readers.seeded import SeededName, SeededOptions, seeded_state
from export.readers.weight_files import read_weights
from runtime.backends.onnxruntime_cpu import OrtBackend
from runtime.bundle import EngineFiles

SMALL = RegionClipArchitecture(
    output_dim=16,
    depth=5,
    channels=4,
    layers=(1, 2, 1, 1),
    trained_grid=2,
    files=(WeightFile("small.pth", None, seed="small/"),),
    scales=ARCHITECTURES["regionclip_rn50"].scales,
)
PIXELS = torch.randint(0, 256, (2, 64, 64, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
CONFIG = {
    "dino_model": "regionclip_resnet50_p32.k",
    "crop_dim": 512,
    "resize_dim": 512,
    "regionclip_config": {
        "checkpoint": "/elsewhere/regionclip_pretrained-cc_rn50.pth",
        "config_name": "pretrain/RegionCLIP_RN50.yaml",
        "use_attnpool_for_spatial_feats": True,
        "patch_size": 32,
        "embed_dim": 1024,
        "MODEL": {"RESNETS": {"OUT_FEATURES": ["res4", "res5"], "IMAGE_RESOLUTION": 512}},
    },
}


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    seeded = SeededName("small", FAMILY, SMALL, SeededOptions(size=64), RegionClipOptions())
    return seeded_state(seeded)


def tower(state: dict[str, Tensor], size: int = 64, **options: str) -> RegionClipBackbone:
    return from_state(state, BackboneRequest(size, "test", None, RegionClipOptions.model_validate(options)))


def tokens_of(backbone: RegionClipBackbone, pixels: Tensor = PIXELS) -> Tensor:
    with torch.inference_mode():
        return backbone(pixels)[0]


def plain_map(state: dict[str, Tensor], pixels: Tensor) -> Tensor:
    """The map (B, W, G, G), its norms computed where they stand."""

    def convolve(x: Tensor, name: str, norm: str, stride: int = 1) -> Tensor:
        kernel = state[f"backbone.{name}.weight"]
        x = F.conv2d(x, kernel, stride=stride, padding=kernel.shape[-1] // 2)
        weight, bias, mean, var = (
            state[f"backbone.{norm}.{part}"] for part in ("weight", "bias", "running_mean", "running_var")
        )
        return F.batch_norm(x, mean, var, weight, bias, eps=1e-5)

    mean, std = torch.tensor(CLIP_MEAN).view(3, 1, 1), torch.tensor(CLIP_STD).view(3, 1, 1)
    x = (pixels.permute(0, 3, 1, 2) / 255 - mean) / std
    for number in (1, 2, 3):
        x = convolve(x, f"conv{number}", f"bn{number}", stride=2 if number == 1 else 1).relu()
    x = F.avg_pool2d(x, 2)
    for layer, blocks in enumerate(SMALL.layers, start=1):
        for block in range(blocks):
            name, shortcut = f"layer{layer}.{block}.", x
            shrinks = layer > 1 and block == 0
            for number in (1, 2):
                x = convolve(x, f"{name}conv{number}", f"{name}bn{number}").relu()
            x = convolve(F.avg_pool2d(x, 2) if shrinks else x, f"{name}conv3", f"{name}bn3")
            if block == 0:
                shortcut = F.avg_pool2d(shortcut, 2) if shrinks else shortcut
                shortcut = convolve(shortcut, f"{name}downsample.0", f"{name}downsample.1")
            x = (x + shortcut).relu()
    return x


def plain_tokens(state: dict[str, Tensor], pixels: Tensor, table: Tensor | None = None) -> Tensor:
    """Tokens (B, T, D) of length 1, by torch's own multi-head attention."""
    pool = {name.removeprefix("backbone.attnpool."): value for name, value in state.items() if "attnpool" in name}
    x = plain_map(state, pixels).flatten(2).permute(2, 0, 1)
    positions = pool["positional_embedding"] if table is None else table
    x = torch.cat([x.mean(0, keepdim=True), x]) + positions[:, None]
    width = x.shape[-1]
    attended, _ = F.multi_head_attention_forward(
        *(x, x, x, width, width // 64, None),
        *(torch.cat([pool[f"{part}_proj.bias"] for part in "qkv"]), None, None, False, 0.0),
        *(pool["c_proj.weight"], pool["c_proj.bias"]),
        training=False,
        need_weights=False,
        use_separate_proj_weight=True,
        q_proj_weight=pool["q_proj.weight"],
        k_proj_weight=pool["k_proj.weight"],
        v_proj_weight=pool["v_proj.weight"],
    )
    return F.normalize(attended.transpose(0, 1), dim=-1)


def test_tokens_are_those_of_the_plain_computation(state: dict[str, Tensor]) -> None:
    backbone = tower(state)
    numbers = backbone.numbers
    assert (numbers.patch_size, numbers.attention_heads, numbers.num_heads, numbers.depth) == (32, 0, 2, 5)
    assert backbone.last_block is None
    assert backbone.notes == ()
    tokens = tokens_of(backbone)
    assert tokens.shape == (2, 5, 16)
    torch.testing.assert_close(tokens, plain_tokens(state, PIXELS), rtol=1e-4, atol=2e-5)
    torch.testing.assert_close(tokens.norm(dim=-1), torch.ones(2, 5))


def test_patches_may_be_the_maps_own_projection(state: dict[str, Tensor]) -> None:
    """Cls stays the attention pool's."""
    places = plain_map(state, PIXELS).flatten(2).transpose(1, 2)
    projected = F.linear(places, state["backbone.attnpool.c_proj.weight"], state["backbone.attnpool.c_proj.bias"])
    tokens = tokens_of(tower(state, patches="projected"))
    torch.testing.assert_close(tokens[:, 1:], F.normalize(projected, dim=-1), rtol=1e-4, atol=2e-5)
    torch.testing.assert_close(tokens[:, 0], plain_tokens(state, PIXELS)[:, 0], rtol=1e-4, atol=2e-5)


def test_at_other_sizes_positions_are_resized_and_the_note_says_so(state: dict[str, Tensor]) -> None:
    """Bilinear: 2 x 2 to 3 x 3 keeps the corners, and takes the mean of two or of all in between; cls stays."""
    table = state["backbone.attnpool.positional_embedding"]
    (cls, a, b, c, d) = table
    rows = [cls, a, (a + b) / 2, b, (a + c) / 2, (a + b + c + d) / 4, (b + d) / 2, c, (c + d) / 2, d]
    pixels = torch.randint(0, 256, (1, 96, 96, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))
    backbone = tower(state, size=96)
    (note,) = backbone.notes
    assert "positions of 2 x 2 patches are resized to 3 x 3; the published system takes random ones" in note
    expected = plain_tokens(state, pixels, torch.stack(rows))
    torch.testing.assert_close(tokens_of(backbone, pixels), expected, rtol=1e-4, atol=2e-5)


@pytest.mark.slow
def test_the_graph_is_the_module(state: dict[str, Tensor], tmp_path: Path) -> None:
    backbone = tower(state)
    export_graph(backbone_spec(backbone), tmp_path)
    engine = OrtBackend().open(EngineFiles(tmp_path / "backbone.onnx"))
    tokens = engine.run({"pixel_values": PIXELS})["tokens"]
    engine.close()
    torch.testing.assert_close(tokens, tokens_of(backbone), rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("prefix", ["backbone.", "visual.", ""])
def test_the_tower_is_found_in_files_with_more_in_them(prefix: str, state: dict[str, Tensor], tmp_path: Path) -> None:
    """RegionCLIP's own under "model", beside a text tower; OpenAI's in float16 with counters of its norms."""
    named = {f"{prefix}{name.removeprefix('backbone.')}": value.half() for name, value in state.items()}
    extra = {"lang_encoder.ln_final.weight": torch.ones(1), f"{prefix}bn1.num_batches_tracked": torch.tensor(3)}
    torch.save({"model": named | extra, "iteration": 3}, tmp_path / "regionclip.pth")
    found = read_weights(tmp_path / "regionclip.pth")
    assert recognize_family(found, "test") is FAMILY
    backbone = tower(found)
    assert backbone.conv1.weight.dtype == torch.float32
    halves = {name: value.half().float() for name, value in state.items()}
    torch.testing.assert_close(tokens_of(backbone), plain_tokens(halves, PIXELS), rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layer2.0.bn3.running_var": None}, "layer2.0.bn3.running_var is missing"),
        ({"attnpool.k_proj.bias": None}, "attnpool.k_proj.bias is missing"),
        ({"layer1.0.conv2.weight": torch.zeros(2, 2)}, r"layer1.0.bn2: expected 2 channels, those of layer1.0.conv2"),
        ({"layer1.0.conv2.weight": torch.zeros(4, 3, 3, 3)}, r"layer1.0.conv2.weight: expected shape \(4, 4, 3, 3\)"),
        ({"attnpool.positional_embedding": torch.zeros(6, 128)}, r"expected shape \(1 \+ g \* g, W\), got \(6, 128\)"),
        ({"attnpool.other": torch.zeros(1)}, "attnpool.other is not a weight of this architecture"),
    ],
)
def test_a_tower_of_another_layout_is_refused_by_key(
    change: dict[str, Tensor | None], message: str, state: dict[str, Tensor]
) -> None:
    changed = dict(state)
    for name, value in change.items():
        changed.pop(f"backbone.{name}", None)
        if value is not None:
            changed[f"backbone.{name}"] = value
    with pytest.raises(CheckpointError, match=f"^test: .*{message}"):
        tower(changed)


def test_sizes_and_architectures_that_do_not_suit_are_refused(state: dict[str, Tensor]) -> None:
    with pytest.raises(CheckpointError, match="size 100: expected a multiple of the patch size, 32"):
        tower(state, size=100)
    wider = replace(SMALL, channels=8)
    with pytest.raises(CheckpointError, match="test: expected a tower whose channels is 8, got 4"):
        from_state(state, BackboneRequest(64, "test", wider, RegionClipOptions()))
    with pytest.raises(CheckpointError, match="depth: expected 16, all blocks, got 2"):
        state_shapes(replace(ARCHITECTURES["regionclip_rn50"], depth=2), 224)


def test_made_up_weights_are_those_of_the_recordings(state: dict[str, Tensor]) -> None:
    """A convolution, a norm's variance and the positions, by the rules of the recordings."""
    for name, gain, offset in (
        ("conv1.weight", (2 / 27) ** 0.5, 0),
        ("layer2.0.downsample.0.weight", (2 / 16) ** 0.5, 0),
        ("bn2.running_mean", 0.1, 0),
        ("layer1.0.downsample.1.weight", 0.1, 1),
        ("attnpool.positional_embedding", 0.3, 0),
    ):
        seed = crc32(f"small/backbone.{name}".encode()) & 0x7FFFFFFF
        expected = offset + gain * np.random.RandomState(seed).standard_normal()
        assert state[f"backbone.{name}"].flatten()[0].item() == pytest.approx(expected, rel=1e-6)


# Configurations


def configured(**changes: object) -> ConfiguredBackbone:
    part = {**CONFIG["regionclip_config"], **changes}  # type: ignore[dict-item]
    return configured_backbone(CONFIG | {"regionclip_config": part}, "config.yaml")


def test_the_published_configuration_chooses_it() -> None:
    backbone = configured()
    assert (backbone.name, backbone.text_space, backbone.image_size) == ("regionclip_rn50", "regionclip-rn50", 512)
    assert [request.names for request in backbone.requests()] == [("/elsewhere/regionclip_pretrained-cc_rn50.pth",)]
    stem = "regionclip_pretrained-cc_rn50-RegionCLIP"
    assert backbone.banks == (f"regionclip-{{captions}}_text_embeddings-regionclip-{stem}-{{rows}}.h5",)
    assert FAMILY.options_of(backbone.settings) == {}
    unpooled = configured(use_attnpool_for_spatial_feats=False)
    assert FAMILY.options_of(unpooled.settings) == {"patches": "projected"}
    assert configured(checkpoint=None).requests()[0].names[0] == "regionclip_pretrained-cc_rn50.pth"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"MODEL": {"RESNETS": {"OUT_FEATURES": ["res4"]}}}, "OUT_FEATURES: expected res5 among them"),
        ({"config_name": "pretrain/RegionCLIP_RN50x4.yaml"}, "regionclip_config: expected RegionCLIP's RN50, got"),
        (
            {"MODEL": {"RESNETS": {"IMAGE_RESOLUTION": 224}}},
            "crop_dim: expected 224, the size that is set for it",
        ),
    ],
)
def test_configurations_of_other_towers_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(CheckpointError, match=f"^config.yaml: .*{message}"):
        _ = configured(**changes).image_size
