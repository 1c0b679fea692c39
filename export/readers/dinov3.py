"""Reads DINOv3 as facebookresearch/dinov3, transformers and timm lay it out (published-system.md, section 11)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

import torch

from export.checkpoint import CheckpointError, load_weights
from export.models.dinov3 import Dinov3Backbone, Dinov3Config
from export.readers.backbone_family import (
    Architecture,
    BackboneFamily,
    BackboneRequest,
    FamilyOptions,
    Shapes,
    StateDict,
    WeightFile,
    check_numbers,
    check_whole_patches,
)
from export.readers.layouts import (
    Layout,
    depth_of,
    find_layout,
    in_each_block,
    linear_shapes,
    norm_shapes,
    to_our_names,
)
from export.readers.weight_files import weight

_HEAD_WIDTHS = {4096: 128}
"""Of ViT-7B's heads, by the width of its blocks; 64 for all others."""
_PATCH_SIZE, _NUM_REGISTERS = 16, 4

_HUB = Layout(
    marker="storage_tokens",
    names={
        "storage_tokens": "register_tokens",
        **{name: name for name in ("cls_token", "patch_embed.proj", "norm")},
    },
    block="blocks.#.",
    block_names={
        name: name
        for name in (
            *("norm1", "attn.qkv", "attn.proj", "ls1", "norm2", "ls2"),
            *("mlp.fc1", "mlp.fc2", "mlp.w1", "mlp.w2", "mlp.w3"),
        )
    },
    # The mask is always 1, 0, 1 over queries, keys and values, and the periods are known; only training has the others.
    ignored=(r"blocks\.\d+\.attn\.qkv\.bias_mask", r"rope_embed\.periods", "mask_token", r"local_cls_norm\..*"),
)
_TRANSFORMERS = Layout(
    marker="embeddings.patch_embeddings.weight",
    names={
        "embeddings.cls_token": "cls_token",
        "embeddings.register_tokens": "register_tokens",
        "embeddings.patch_embeddings": "patch_embed.proj",
        "norm": "norm",
    },
    block="layer.#.",
    block_names={
        "norm1": "norm1",
        "attention.o_proj": "attn.proj",
        "layer_scale1.lambda1": "ls1.gamma",
        "norm2": "norm2",
        "mlp.up_proj": "mlp.fc1",
        "mlp.down_proj": "mlp.fc2",
        "layer_scale2.lambda1": "ls2.gamma",
    },
    qkv=("attention.q_proj", "attention.k_proj", "attention.v_proj"),
    ignored=(r"embeddings\.mask_token",),
)
_GATED_TRANSFORMERS = replace(
    _TRANSFORMERS,
    marker="layer.0.mlp.gate_proj.weight",
    block_names={
        **_TRANSFORMERS.block_names,
        **{"mlp.gate_proj": "mlp.w1", "mlp.up_proj": "mlp.w2", "mlp.down_proj": "mlp.w3"},
    },
)
_TIMM = Layout(
    marker="blocks.0.gamma_1",
    names={"reg_token": "register_tokens", **{name: name for name in ("cls_token", "patch_embed.proj", "norm")}},
    block="blocks.#.",
    block_names={
        "gamma_1": "ls1.gamma",
        "gamma_2": "ls2.gamma",
        **{name: name for name in ("norm1", "attn.qkv", "attn.q_bias", "attn.v_bias", "attn.proj", "norm2")},
        **{name: name for name in ("mlp.fc1", "mlp.fc2")},
    },
)
_GATED_TIMM = replace(
    _TIMM,
    marker="blocks.0.mlp.fc1_g.weight",
    block_names={**_TIMM.block_names, **{"mlp.fc1_g": "mlp.w1", "mlp.fc1_x": "mlp.w2", "mlp.fc2": "mlp.w3"}},
)
_LAYOUTS = (_HUB, _GATED_TRANSFORMERS, _TRANSFORMERS, _GATED_TIMM, _TIMM)


@dataclass(frozen=True, kw_only=True)
class Dinov3Architecture(Architecture):
    """The numbers of a published backbone.

    Attributes:
        gated_width: hidden width of its gated feed-forward layers; None for plain ones.
    """

    gated_width: int | None = None


class Dinov3Options(FamilyOptions):
    """Attributes: ``periods``, the format that the periods of the rotation are rounded to.

    The files of facebookresearch/dinov3 hold them in bfloat16, other libraries compute them in float32
    (published-system.md, section 11).
    """

    periods: Literal["float32", "bfloat16"] = "float32"


Dinov3Request: TypeAlias = BackboneRequest[Dinov3Architecture, Dinov3Options]

_SIZES = (
    ("vits16", "small", 384, 12, None, "08c60483"),
    ("vits16plus", "small_plus", 384, 12, 1536, "4057cbaa"),
    ("vitb16", "base", 768, 12, None, "73cec8be"),
    ("vitl16", "large", 1024, 24, None, "8aa4cbdd"),
    ("vith16plus", "huge_plus", 1280, 32, 5120, "7c1da9a5"),
)
ARCHITECTURES = {
    (name := f"dinov3_{size}"): Dinov3Architecture(
        output_dim=width,
        depth=depth,
        gated_width=gated_width,
        default_size=448,
        text_space="t2d-dinov3-b" if size == "vitb16" else None,
        files=(
            WeightFile(
                f"{name}_pretrain_lvd1689m-{digest}.pth",
                f"facebook/dinov3-{size}-pretrain-lvd1689m",
                seed=f"{name}/",
                mirrors=(f"timm/vit_{timm_size}_patch16_dinov3.lvd1689m",),
            ),
        ),
        aliases=tuple(
            f"{owner}vit_{timm_size}_patch16_dinov3{suffix}.lvd1689m"
            for owner in ("", "timm/")
            for suffix in ("", "_qkvb")
        ),
    )
    for size, timm_size, width, depth, gated_width, digest in _SIZES
}
"""The published backbones by their hub names."""


def recognizes(state: StateDict) -> bool:
    """Return whether a state dict is that of a DINOv3, in any layout."""
    return find_layout(state, _LAYOUTS) is not None


def from_state(state: StateDict, request: Dinov3Request) -> Dinov3Backbone:
    """Return the backbone of a state dict; its width, depth and registers are read off the weights.

    Raises:
        CheckpointError: a weight is missing, unknown or wrongly shaped, or the size is not a whole number of patches.
    """
    source, state = request.source, _without_encoder_name(state)
    layout = find_layout(state, _LAYOUTS)
    if layout is None:
        raise CheckpointError(f"{source}: expected the weights of a DINOv3 backbone, {_HUB.marker} among them")
    ours = to_our_names(state, layout, source)
    config = _config(ours, request)
    for number in range(config.depth):
        _make_bias(ours, f"blocks.{number}.attn", source)
    with torch.device("meta"):
        backbone = Dinov3Backbone(config)
    load_weights(backbone, ours, source)
    return backbone


def _without_encoder_name(state: StateDict) -> StateDict:
    """Return weights by the names in transformers' files: in its memory the blocks are ``model.layer.I``."""
    prefix = _TRANSFORMERS.prefix_in(state)
    if prefix is None:
        return state
    inner = f"{prefix}model."
    return {
        prefix + name.removeprefix(inner) if name.startswith(f"{inner}layer.") else name: value
        for name, value in state.items()
    }


def _config(state: StateDict, request: Dinov3Request) -> Dinov3Config:
    source, architecture = request.source, request.architecture
    patches, registers = (weight(state, name, source) for name in ("patch_embed.proj.weight", "register_tokens"))
    if patches.ndim != 4 or patches.shape[0] % 64:
        raise CheckpointError(
            f"{source}: patch_embed.proj.weight: expected (D, 3, patch, patch) with D a multiple of 64, got "
            f"{tuple(patches.shape)}"
        )
    if registers.ndim != 3:
        raise CheckpointError(f"{source}: register_tokens: expected (1, registers, D), got {tuple(registers.shape)}")
    width, patch_size = patches.shape[0], patches.shape[-1]
    check_whole_patches(request.image_size, patch_size)
    gate = state.get("blocks.0.mlp.w1.weight")
    config = Dinov3Config(
        embed_dim=width,
        depth=depth_of(state),
        num_heads=width // _HEAD_WIDTHS.get(width, 64),
        num_registers=registers.shape[1],
        image_size=request.image_size,
        patch_size=patch_size,
        gated_width=gate.shape[0] if gate is not None and gate.ndim else None,
        qkv_bias=any(f"blocks.0.attn.{name}" in state for name in ("qkv.bias", "q_bias", "v_bias")),
        rounds_periods=request.options.periods == "bfloat16",
    )
    if architecture is not None:
        _check_architecture(config, architecture, source)
    return config


def _check_architecture(config: Dinov3Config, expected: Dinov3Architecture, source: str) -> None:
    found = {"output_dim": config.embed_dim, "depth": config.depth, "gated_width": config.gated_width}
    kind = expected.files[0].name.partition("_pretrain")[0]
    check_numbers(found, expected, f"{kind},", source)


def _make_bias(state: StateDict, attention: str, source: str) -> None:
    """Make the bias of a block's queries, keys and values in place, if it has one; that of the keys is always zero."""
    name, parts = f"{attention}.qkv.bias", [f"{attention}.{part}_bias" for part in "qv"]
    if any(part in state for part in parts):
        query, value = (weight(state, part, source).reshape(-1) for part in parts)
        state[name] = torch.cat([query, torch.zeros_like(query), value])
        for part in parts:
            del state[part]
    elif name in state and state[name].ndim == 1:  # of another shape it is refused as it is
        query, key, value = state[name].tensor_split(3)
        state[name] = torch.cat([query, torch.zeros_like(key), value])


def state_shapes(architecture: Dinov3Architecture, _image_size: int = 0) -> Shapes:
    """Return the shapes of a published backbone's weights in the hub's layout, by name, whatever the image size."""
    width, gated_width = architecture.output_dim, architecture.gated_width
    shapes: Shapes = {
        "cls_token": (1, 1, width),
        "storage_tokens": (1, _NUM_REGISTERS, width),
        "patch_embed.proj.weight": (width, 3, _PATCH_SIZE, _PATCH_SIZE),
        "patch_embed.proj.bias": (width,),
        **norm_shapes("norm", width),
    }
    block: Shapes = {
        **norm_shapes("norm1", width),
        **linear_shapes("attn.qkv", width, 3 * width),
        **linear_shapes("attn.proj", width, width),
        "ls1.gamma": (width,),
        **norm_shapes("norm2", width),
        "ls2.gamma": (width,),
    }
    if gated_width is None:
        block |= linear_shapes("mlp.fc1", width, 4 * width) | linear_shapes("mlp.fc2", 4 * width, width)
    else:
        block |= linear_shapes("mlp.w1", width, gated_width) | linear_shapes("mlp.w2", width, gated_width)
        block |= linear_shapes("mlp.w3", gated_width, width)
    return shapes | in_each_block("blocks.", architecture.depth, block)


FAMILY = BackboneFamily("dinov3", ARCHITECTURES, Dinov3Options, recognizes, from_state, state_shapes)
