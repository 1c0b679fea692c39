"""Reads DINOv2 backbones as facebookresearch/dinov2 or transformers lay them out (published-system.md, section 2)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import torch
from torch import Tensor

from export.checkpoint import CheckpointError, load_weights
from export.models.dinov2 import Dinov2Backbone, Dinov2Config, resize_position_embedding
from export.readers.backbone_family import (
    Architecture,
    BackboneFamily,
    BackboneRequest,
    FamilyOptions,
    Settings,
    Shapes,
    StateDict,
    WeightFile,
    check_numbers,
    check_whole_patches,
)
from export.readers.layouts import depth_of, in_each_block, linear_shapes, norm_shapes
from export.readers.weight_files import read_weights, weight

_HEAD_DIM = 64
"""Width of every DINOv2 head."""
_IGNORED = {"mask_token"}  # only training uses it

_TRANSFORMERS_MARKER = "embeddings.patch_embeddings.projection.weight"
"""A weight that every model in transformers' layout has."""
_HUB_NAMES = {
    "embeddings.cls_token": "cls_token",
    "embeddings.mask_token": "mask_token",
    "embeddings.position_embeddings": "pos_embed",
    "embeddings.register_tokens": "register_tokens",
    "embeddings.patch_embeddings.projection.weight": "patch_embed.proj.weight",
    "embeddings.patch_embeddings.projection.bias": "patch_embed.proj.bias",
    "layernorm.weight": "norm.weight",
    "layernorm.bias": "norm.bias",
}
_HUB_LAYER_NAMES = {
    "norm1": "norm1",
    "norm2": "norm2",
    "attention.output.dense": "attn.proj",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
    "mlp.weights_in": "mlp.w12",
    "mlp.weights_out": "mlp.w3",
}
_HUB_SCALE_NAMES = {"layer_scale1.lambda1": "ls1.gamma", "layer_scale2.lambda1": "ls2.gamma"}
_LAYER = re.compile(r"encoder\.layer\.(\d+)\.(.+)")
_QKV_PART = re.compile(r"attention\.attention\.(query|key|value)\.(weight|bias)")


@dataclass(frozen=True, kw_only=True)
class Dinov2Architecture(Architecture):
    """The numbers of a published backbone.

    Attributes:
        attention_heads: heads that the published system splits the cls attention into: 6 for ViT-S and 16 for all
            others, ViT-B with its 12 heads among them (published-system.md, section 3).
        swiglu_width: hidden width of its gated feed-forward layers; None for plain ones.
        trained_grid: patches per side of its position embedding.
        has_layer_scale: whether its blocks have one.
    """

    num_registers: int
    attention_heads: int
    swiglu_width: int | None
    patch_size: int = 14
    trained_grid: int = 37
    has_layer_scale: bool = True


class Dinov2Options(FamilyOptions):
    """Attributes: ``attention``, which of queries, keys and values the last block takes as its own, "kkv" for example.

    See published-system.md, section 2.
    """

    attention: str = "qkv"


Dinov2Request: TypeAlias = BackboneRequest[Dinov2Architecture, Dinov2Options]

_SIZES = {
    "s": (384, 12, 6, None, "small"),
    "b": (768, 12, 16, None, "base"),
    "l": (1024, 24, 16, None, "large"),
    "g": (1536, 40, 16, 4096, "giant"),
}
ARCHITECTURES = {
    (name := f"dinov2_vit{letter}14{suffix}"): Dinov2Architecture(
        output_dim=width,
        depth=depth,
        num_registers=registers,
        attention_heads=attention_heads,
        swiglu_width=swiglu_width,
        default_size=518,
        text_space="t2d-dinov2-b-2024" if letter == "b" else None,
        files=(WeightFile(f"{name}{registers or ''}_pretrain.pth", f"facebook/{repository}-{size}", seed=f"{name}/"),),
    )
    for letter, (width, depth, attention_heads, swiglu_width, size) in _SIZES.items()
    for suffix, registers, repository in (("", 0, "dinov2"), ("_reg", 4, "dinov2-with-registers"))
}
"""The published backbones by their hub names."""


def read_dinov2(
    path: Path, image_size: int, architecture: Dinov2Architecture | None = None, attention: str = "qkv"
) -> Dinov2Backbone:
    """Read a backbone from a file (or folder) of weights, its position embedding resized for the image size.

    Args:
        image_size: side of the backbone's input, in pixels.
        architecture: what it is expected to be; None takes what is there.
        attention: which of queries, keys and values the last block takes as its own, "kkv" for example
            (published-system.md, section 2).

    Raises:
        CheckpointError: the file cannot be read, or is of another layout or architecture.
    """
    return backbone_from_state(read_weights(path), image_size, str(path), architecture, attention)


def recognizes(state: dict[str, Tensor]) -> bool:
    """Return whether a state dict is that of a DINOv2, in either layout."""
    # Without layer scale those are timm's names of another family.
    return {"patch_embed.proj.weight", "blocks.0.ls1.gamma"} <= set(state) or is_transformers_layout(state)


def from_state(state: StateDict, request: Dinov2Request) -> Dinov2Backbone:
    """Return the backbone of a state dict, as `backbone_from_state`."""
    return backbone_from_state(
        state, request.image_size, request.source, request.architecture, request.options.attention
    )


def backbone_from_state(
    state: dict[str, Tensor],
    image_size: int,
    source: str,
    architecture: Dinov2Architecture | None = None,
    attention: str = "qkv",
) -> Dinov2Backbone:
    """Return the backbone of a state dict; its width, depth and registers are read off the weights.

    Raises:
        CheckpointError: a weight is missing, unknown or wrongly shaped, or the size is not a whole number of patches.
    """
    if is_transformers_layout(state):
        state = to_hub_layout(state, source)
    config = _read_config(state, image_size, architecture, source)
    if architecture is not None:
        _check_architecture(config, architecture, source)
    kept = {name: value for name, value in state.items() if name not in _IGNORED}
    pos_embed = weight(kept, "pos_embed", source).float()
    if pos_embed.ndim != 3 or round((pos_embed.shape[1] - 1) ** 0.5) ** 2 != pos_embed.shape[1] - 1:
        raise CheckpointError(f"{source}: pos_embed: expected (1, 1 + g * g, D), got {tuple(pos_embed.shape)}")
    kept["pos_embed"] = resize_position_embedding(pos_embed, config.grid, has_registers=config.num_registers > 0)
    if attention != "qkv":
        kept |= _reorder_qkv(kept, config, attention, source)
    with torch.device("meta"):  # no memory before its weights are there: those of ViT-g are 4.2 GiB
        backbone = Dinov2Backbone(config)
    load_weights(backbone, kept, source)
    return backbone


def _read_config(
    state: dict[str, Tensor], image_size: int, architecture: Dinov2Architecture | None, source: str
) -> Dinov2Config:
    patches = weight(state, "patch_embed.proj.weight", source)
    if patches.ndim != 4 or patches.shape[0] % _HEAD_DIM:
        raise CheckpointError(
            f"{source}: patch_embed.proj.weight: expected (D, 3, patch, patch) with D a multiple of {_HEAD_DIM}, "
            f"got {tuple(patches.shape)}"
        )
    patch_size = patches.shape[-1]
    check_whole_patches(image_size, patch_size)
    num_heads = patches.shape[0] // _HEAD_DIM
    return Dinov2Config(
        embed_dim=patches.shape[0],
        depth=depth_of(state),
        num_heads=num_heads,
        num_registers=_second_size(state, "register_tokens", 3, source) or 0,
        image_size=image_size,
        attention_heads=num_heads if architecture is None else architecture.attention_heads,
        patch_size=patch_size,
        swiglu_width=_second_size(state, "blocks.0.mlp.w3.weight", 2, source),
        has_layer_scale="blocks.0.ls1.gamma" in state if architecture is None else architecture.has_layer_scale,
    )


def _second_size(state: dict[str, Tensor], name: str, axes: int, source: str) -> int | None:
    """Return the size of a weight's second axis; None where there is no such weight."""
    if name not in state:
        return None
    if state[name].ndim != axes:
        raise CheckpointError(f"{source}: {name}: expected {axes} axes, got shape {tuple(state[name].shape)}")
    return state[name].shape[1]


def _check_architecture(config: Dinov2Config, expected: Dinov2Architecture, source: str) -> None:
    found = {name: getattr(config, name) for name in ("depth", "num_registers", "swiglu_width", "patch_size")}
    kind = expected.files[0].name.removesuffix("_pretrain.pth")
    check_numbers({"output_dim": config.embed_dim} | found, expected, f"{kind},", source)


def _reorder_qkv(state: dict[str, Tensor], config: Dinov2Config, attention: str, source: str) -> dict[str, Tensor]:
    """Return the last block's projection in another order: "kkv" takes the queries from the keys' rows."""
    if len(attention) != 3 or not set(attention) <= set("qkv"):
        raise CheckpointError(f"attention_type: expected three of the letters q, k, v, such as kkv, got {attention!r}")
    names = [f"blocks.{config.depth - 1}.attn.qkv.{part}" for part in ("weight", "bias")]
    reordered = {}
    for name in names:
        qkv = weight(state, name, source)
        if qkv.ndim == 0 or len(qkv) != 3 * config.embed_dim:
            raise CheckpointError(f"{source}: {name}: expected {3 * config.embed_dim} rows, got {tuple(qkv.shape)}")
        parts = dict(zip("qkv", qkv.chunk(3), strict=True))
        reordered[name] = torch.cat([parts[letter] for letter in attention])
    return reordered


def state_shapes(architecture: Dinov2Architecture, _: int) -> Shapes:
    """Return the shapes of a published backbone's weights in the hub's layout, by name, for any image size."""
    width, registers, gated = architecture.output_dim, architecture.num_registers, architecture.swiglu_width
    shapes: Shapes = {
        "cls_token": (1, 1, width),
        "pos_embed": (1, 1 + architecture.trained_grid**2, width),
        **({"register_tokens": (1, registers, width)} if registers else {}),
        "patch_embed.proj.weight": (width, 3, architecture.patch_size, architecture.patch_size),
        "patch_embed.proj.bias": (width,),
        **norm_shapes("norm", width),
    }
    block: Shapes = {
        **norm_shapes("norm1", width),
        **linear_shapes("attn.qkv", width, 3 * width),
        **linear_shapes("attn.proj", width, width),
        **norm_shapes("norm2", width),
    }
    if architecture.has_layer_scale:
        block |= {"ls1.gamma": (width,), "ls2.gamma": (width,)}
    if gated is None:
        block |= linear_shapes("mlp.fc1", width, 4 * width) | linear_shapes("mlp.fc2", 4 * width, width)
    else:
        block |= linear_shapes("mlp.w12", width, 2 * gated) | linear_shapes("mlp.w3", gated, width)
    return shapes | in_each_block("blocks.", architecture.depth, block)


def is_transformers_layout(state: dict[str, Tensor]) -> bool:
    """Return whether weights are named as transformers does, with or without the prefix of a model for some task."""
    return any(name.endswith(_TRANSFORMERS_MARKER) for name in state)


def to_hub_layout(state: dict[str, Tensor], source: str) -> dict[str, Tensor]:
    """Return the same weights by the names of facebookresearch/dinov2, a layer's queries, keys and values in one.

    Weights outside the backbone, those of a classifier's head for example, are left out.

    Raises:
        CheckpointError: a weight of the backbone that DINOv2 does not have, or a part of a projection missing.
    """
    prefix = next(name for name in state if name.endswith(_TRANSFORMERS_MARKER)).removesuffix(_TRANSFORMERS_MARKER)
    renamed: dict[str, Tensor] = {}
    projections: dict[str, dict[str, Tensor]] = {}
    for full_name, value in state.items():
        if not full_name.startswith(prefix):
            continue
        name = full_name.removeprefix(prefix)
        layer = _LAYER.fullmatch(name)
        part = _QKV_PART.fullmatch(layer[2]) if layer else None
        if layer and part:
            projections.setdefault(f"blocks.{layer[1]}.attn.qkv.{part[2]}", {})[part[1]] = value
        elif hub_name := _HUB_NAMES.get(name) or (layer and _hub_layer_name(layer[1], layer[2])):
            renamed[hub_name] = value
        elif prefix or name.split(".")[0] in ("embeddings", "encoder", "layernorm"):
            raise CheckpointError(f"{source}: {full_name} is not a weight of DINOv2")
    for name, parts in projections.items():
        missing = {"query", "key", "value"} - set(parts)
        if missing:
            raise CheckpointError(f"{source}: {name}: the {missing.pop()} of that layer is missing")
        renamed[name] = torch.cat([parts["query"], parts["key"], parts["value"]])
    return renamed


def _hub_layer_name(number: str, name: str) -> str | None:
    if name in _HUB_SCALE_NAMES:
        return f"blocks.{number}.{_HUB_SCALE_NAMES[name]}"
    module, _, part = name.rpartition(".")
    return f"blocks.{number}.{_HUB_LAYER_NAMES[module]}.{part}" if module in _HUB_LAYER_NAMES else None


def _options_of(settings: Settings) -> dict[str, str]:
    attention = settings.get("attention_type") or ("kkv" if settings.get("kkv_attention") else None)
    return {} if attention is None else {"attention": str(attention)}


FAMILY = BackboneFamily(
    "dinov2",
    ARCHITECTURES,
    Dinov2Options,
    recognizes,
    from_state,
    state_shapes,
    settings=frozenset({"kkv_attention", "attention_type"}),
    options_of=_options_of,
)
