"""DINOv2 backbones, in the layout of facebookresearch/dinov2 or of transformers (SPEC section 2)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from export.checkpoint import CheckpointError, fill
from export.models.dinov2 import HEAD_WIDTH, Backbone, BackboneConfig, resize_position_embedding
from export.readers.dinov2_transformers import is_transformers_layout, to_hub_layout
from export.readers.weight_files import read_weights, weight

_IGNORED = {"mask_token"}  # only training uses it


@dataclass(frozen=True)
class Architecture:
    """The numbers of a published backbone.

    Attributes:
        swiglu_width: hidden width of its gated feed-forward layers; None for plain ones.
        files: what the file is called that the DINOv2 hub publishes.
        repository: where transformers' layout of it is published.
    """

    width: int
    depth: int
    registers: int
    swiglu_width: int | None
    file: str
    repository: str


_SIZES = {
    "s": (384, 12, None, "small"),
    "b": (768, 12, None, "base"),
    "l": (1024, 24, None, "large"),
    "g": (1536, 40, 4096, "giant"),
}
ARCHITECTURES = {
    f"dinov2_vit{letter}14{suffix}": Architecture(
        width,
        depth,
        registers,
        swiglu_width,
        file=f"dinov2_vit{letter}14{suffix}{registers or ''}_pretrain.pth",
        repository=f"facebook/{family}-{size}",
    )
    for letter, (width, depth, swiglu_width, size) in _SIZES.items()
    for suffix, registers, family in (("", 0, "dinov2"), ("_reg", 4, "dinov2-with-registers"))
}
"""By their hub names."""


def read_dinov2(path: Path, size: int, architecture: Architecture | None = None, attention: str = "qkv") -> Backbone:
    """The backbone in a file (or folder) of weights, its position embedding resized for inputs of ``size`` pixels.

    Args:
        architecture: what it is expected to be; None takes what is there.
        attention: which thirds of the last block's projection queries, keys and values come from (SPEC section 2).

    Raises:
        CheckpointError: the file cannot be read, or is of another layout or architecture.
    """
    state = read_weights(path)
    if is_transformers_layout(state):
        state = to_hub_layout(state, str(path))
    return backbone_from_state(state, size, str(path), architecture, attention)


def backbone_from_state(
    state: dict[str, Tensor],
    size: int,
    source: str,
    architecture: Architecture | None = None,
    attention: str = "qkv",
) -> Backbone:
    """The backbone of a state dict in the hub's layout; its width, depth and registers are read off the weights.

    Raises:
        CheckpointError: a weight is missing, unknown or wrongly shaped, or ``size`` is not a whole number of patches.
    """
    config = _config(state, size, source)
    if architecture is not None:
        _check(config, architecture, source)
    kept = {name: value for name, value in state.items() if name not in _IGNORED}
    pos_embed = weight(kept, "pos_embed", source).float()
    if pos_embed.ndim != 3 or round((pos_embed.shape[1] - 1) ** 0.5) ** 2 != pos_embed.shape[1] - 1:
        raise CheckpointError(f"{source}: pos_embed: expected (1, 1 + g * g, D), got {tuple(pos_embed.shape)}")
    kept["pos_embed"] = resize_position_embedding(pos_embed, config.grid, has_registers=config.registers > 0)
    if attention != "qkv":
        kept |= _reordered(kept, config, attention, source)
    with torch.device("meta"):  # no memory before its weights are there: those of ViT-g are 4.2 GiB
        backbone = Backbone(config)
    fill(backbone, kept, source)
    return backbone


def _config(state: dict[str, Tensor], size: int, source: str) -> BackboneConfig:
    patches = weight(state, "patch_embed.proj.weight", source)
    if patches.ndim != 4 or patches.shape[0] % HEAD_WIDTH:
        raise CheckpointError(
            f"{source}: patch_embed.proj.weight: expected (D, 3, patch, patch) with D a multiple of {HEAD_WIDTH}, "
            f"got {tuple(patches.shape)}"
        )
    patch = patches.shape[-1]
    if size <= 0 or size % patch:
        raise CheckpointError(f"size {size}: expected a multiple of the patch size, {patch}")
    return BackboneConfig(
        width=patches.shape[0],
        depth=len({name.split(".")[1] for name in state if name.startswith("blocks.")}),
        registers=_side(state, "register_tokens", 3, source) or 0,
        size=size,
        patch=patch,
        swiglu_width=_side(state, "blocks.0.mlp.w3.weight", 2, source),
    )


def _side(state: dict[str, Tensor], name: str, axes: int, source: str) -> int | None:
    """The second side of a weight, None where there is no such weight."""
    if name not in state:
        return None
    if state[name].ndim != axes:
        raise CheckpointError(f"{source}: {name}: expected {axes} axes, got shape {tuple(state[name].shape)}")
    return state[name].shape[1]


def _check(config: BackboneConfig, expected: Architecture, source: str) -> None:
    for name in ("width", "depth", "registers", "swiglu_width"):
        wanted, got = getattr(expected, name), getattr(config, name)
        if got != wanted:
            kind = expected.file.removesuffix("_pretrain.pth")
            raise CheckpointError(f"{source}: expected {kind}, whose {name} is {wanted}, got {got}")


def _reordered(state: dict[str, Tensor], config: BackboneConfig, attention: str, source: str) -> dict[str, Tensor]:
    """The last block's projection with its thirds in another order: "kkv" takes queries from the keys' third."""
    if len(attention) != 3 or not set(attention) <= set("qkv"):
        raise CheckpointError(f"attention_type: expected three of the letters q, k, v, such as kkv, got {attention!r}")
    names = [f"blocks.{config.depth - 1}.attn.qkv.{part}" for part in ("weight", "bias")]
    reordered = {}
    for name in names:
        joined = weight(state, name, source)
        if joined.ndim == 0 or len(joined) != 3 * config.width:
            raise CheckpointError(f"{source}: {name}: expected {3 * config.width} rows, got {tuple(joined.shape)}")
        thirds = dict(zip("qkv", joined.chunk(3), strict=True))
        reordered[name] = torch.cat([thirds[letter] for letter in attention])
    return reordered
