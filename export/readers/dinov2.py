"""DINOv2 backbones in the layout of facebookresearch/dinov2 (SPEC section 2)."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from export.checkpoint import CheckpointError, fill
from export.graphs.backbone import HEAD_WIDTH, Backbone, BackboneConfig, resize_position_embedding
from export.readers.files import read_pickle, weight

_IGNORED = {"mask_token"}  # only training uses it


def read_dinov2(path: Path, size: int) -> Backbone:
    """The backbone in a .pth file, its position embedding resized for inputs of ``size`` pixels."""
    return backbone_from_state(read_pickle(path), size, str(path))


def backbone_from_state(state: dict[str, Tensor], size: int, source: str) -> Backbone:
    """The backbone of a state dict; its width, depth and registers are read off the weights.

    Raises:
        CheckpointError: a weight is missing, unknown or wrongly shaped, or ``size`` is not a whole number of patches.
    """
    patches = weight(state, "patch_embed.proj.weight", source)
    if patches.ndim != 4 or patches.shape[0] % HEAD_WIDTH:
        raise CheckpointError(
            f"{source}: patch_embed.proj.weight: expected (D, 3, patch, patch) with D a multiple of {HEAD_WIDTH}, "
            f"got {tuple(patches.shape)}"
        )
    patch = patches.shape[-1]
    if size <= 0 or size % patch:
        raise CheckpointError(f"size {size}: expected a multiple of the patch size, {patch}")
    blocks = {int(name.split(".")[1]) for name in state if name.startswith("blocks.")}
    registers = state["register_tokens"].shape[1] if "register_tokens" in state else 0
    config = BackboneConfig(width=patches.shape[0], depth=len(blocks), registers=registers, size=size, patch=patch)
    backbone = Backbone(config)
    kept = {name: value for name, value in state.items() if name not in _IGNORED}
    pos_embed = weight(kept, "pos_embed", source).float()
    if pos_embed.ndim != 3 or round((pos_embed.shape[1] - 1) ** 0.5) ** 2 != pos_embed.shape[1] - 1:
        raise CheckpointError(f"{source}: pos_embed: expected (1, 1 + g * g, D), got {tuple(pos_embed.shape)}")
    kept["pos_embed"] = resize_position_embedding(pos_embed, config.grid, has_registers=registers > 0)
    fill(backbone, kept, source)
    return backbone
