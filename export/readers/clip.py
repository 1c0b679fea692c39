"""Reads CLIP's vision towers as OpenAI, open_clip, timm and transformers lay them out.

See published-system.md, section 10.

INViTE is CLIP with one change, the option ``invite``; DenseCLIP is CLIP by other names, at one size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, TypeAlias

import torch
from pydantic import Field

from export.checkpoint import CheckpointError, load_weights
from export.models.clip import ClipBackbone, ClipConfig
from export.models.vit import Activation, resize_grid
from export.readers.backbone_family import (
    Architecture,
    BackboneFamily,
    BackboneRequest,
    FamilyOptions,
    Shapes,
    StateDict,
    WeightFile,
)
from export.readers.layouts import Layout, depth_of, find_layout, to_our_names
from export.readers.weight_files import weight

_HEAD_WIDTHS = {1280: 80, 1408: 88, 1664: 104}
"""Of open_clip's H, g and G, by the width of their blocks; 64 for all others."""

_OPENAI = Layout(
    marker="ln_pre.weight",
    names={
        "class_embedding": "cls_token",
        "positional_embedding": "pos_embed",
        "conv1": "patch_embed.proj",
        "ln_pre": "norm_pre",
        "ln_post": "norm",
        "proj": "head.weight",
    },
    block="transformer.resblocks.#.",
    block_names={
        "ln_1": "norm1",
        "attn.in_proj_weight": "attn.qkv.weight",
        "attn.in_proj_bias": "attn.qkv.bias",
        "attn.out_proj": "attn.proj",
        "ln_2": "norm2",
        "mlp.c_fc": "mlp.fc1",
        "mlp.c_proj": "mlp.fc2",
    },
)
"""Also open_clip's; and DenseCLIP's, with another prefix."""
_TIMM = Layout(
    marker="norm_pre.weight",
    names={name: name for name in ("cls_token", "pos_embed", "patch_embed.proj", "norm_pre", "norm", "head")},
    block="blocks.#.",
    block_names={name: name for name in ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")},
    ignored=("head.bias",),  # zeros
)
_TRANSFORMERS = Layout(
    marker="vision_model.pre_layrnorm.weight",
    names={
        "vision_model.embeddings.class_embedding": "cls_token",
        "vision_model.embeddings.position_embedding.weight": "pos_embed",
        "vision_model.embeddings.patch_embedding": "patch_embed.proj",
        "vision_model.pre_layrnorm": "norm_pre",
        "vision_model.post_layernorm": "norm",
        "visual_projection": "head",
    },
    block="vision_model.encoder.layers.#.",
    block_names={
        "layer_norm1": "norm1",
        "self_attn.out_proj": "attn.proj",
        "layer_norm2": "norm2",
        "mlp.fc1": "mlp.fc1",
        "mlp.fc2": "mlp.fc2",
    },
    qkv=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    ignored=(r"vision_model\.embeddings\.position_ids", r"text_model\..*", r"text_projection\..*", "logit_scale"),
)
_LAYOUTS = (_OPENAI, _TIMM, _TRANSFORMERS)


@dataclass(frozen=True, kw_only=True)
class ClipArchitecture(Architecture):
    """The numbers of a published tower.

    Attributes:
        width: of its blocks.
        trained_size: the input size of its position table; its only one, unless it ``is_resized``.
        prefix: of its names in the layout of OpenAI, for made-up weights.
    """

    width: int
    patch_size: int
    activation: Activation = "quick_gelu"
    trained_size: int = 224
    is_resized: bool = True
    prefix: str = "visual."


class ClipOptions(FamilyOptions):
    """Attributes: ``invite``, how many of the last blocks let each token attend to itself alone (INViTE: 1).

    ``published`` leaves out the last norm of an open_clip tower, as the published system does (published-system.md,
    section 10).
    """

    invite: Annotated[int, Field(ge=0)] = 0
    published: bool = False


ClipRequest: TypeAlias = BackboneRequest[ClipArchitecture, ClipOptions]

ARCHITECTURES = {
    f"clip_vitb{patch}": ClipArchitecture(
        output_dim=512,
        depth=12,
        width=768,
        patch_size=patch,
        text_space=f"clip-b{patch}",
        files=(WeightFile(f"ViT-B-{patch}.pt", f"openai/clip-vit-base-patch{patch}", seed=f"clip_vitb{patch}/"),),
        aliases=(
            f"vit_base_patch{patch}_clip_224.openai",
            f"timm/vit_base_patch{patch}_clip_224.openai",
            f"ViT-B/{patch}",
        ),
    )
    for patch in (16, 32)
} | {
    "openclip_vith14": ClipArchitecture(
        output_dim=1024,
        depth=32,
        width=1280,
        patch_size=14,
        activation="gelu",
        text_space="openclip-h14",
        files=(
            WeightFile("open_clip_pytorch_model.bin", "laion/CLIP-ViT-H-14-laion2B-s32B-b79K", seed="openclip_vith14/"),
        ),
        aliases=("ViT-H-14", "ViT-H/14", "vit_huge_patch14_clip_224.laion2b"),
    ),
    "denseclip_vitb16": ClipArchitecture(
        output_dim=512,
        depth=12,
        width=768,
        patch_size=16,
        text_space="denseclip-b16",
        trained_size=640,
        default_size=640,
        is_resized=False,
        prefix="backbone.",
        files=(WeightFile("ViT-B-DenseCLIP.pth", None, seed="denseclip_vitb16/"),),
    ),
}
"""The published towers."""


def recognizes(state: StateDict) -> bool:
    """Return whether a state dict holds a CLIP vision tower, in any layout."""
    return find_layout(state, _LAYOUTS) is not None


def from_state(state: StateDict, request: ClipRequest) -> ClipBackbone:
    """Return the tower of a state dict, its position table resized for the image size.

    Raises:
        CheckpointError: a weight is missing, unknown or wrongly shaped, or the size does not suit.
    """
    layout, source = find_layout(state, _LAYOUTS), request.source
    if layout is None:
        raise CheckpointError(f"{source}: expected the weights of a CLIP vision tower, {_OPENAI.marker} among them")
    ours = to_our_names(state, layout, source)
    if layout is _OPENAI and "head.weight" in ours:
        ours["head.weight"] = ours["head.weight"].T  # stored as (width, D)
    ours["cls_token"] = weight(ours, "cls_token", source).reshape(1, 1, -1)
    positions = weight(ours, "pos_embed", source)
    ours["pos_embed"] = positions.reshape(1, *positions.shape[-2:])
    config = _config(ours, request)
    ours["pos_embed"] = _positions(ours["pos_embed"].float(), config, request)
    if not config.norms_output:
        ours = {name: value for name, value in ours.items() if not name.startswith("norm.")}
    with torch.device("meta"):
        backbone = ClipBackbone(config)
    load_weights(backbone, ours, source)
    return backbone


def _config(state: StateDict, request: ClipRequest) -> ClipConfig:
    patches, head = (weight(state, name, request.source) for name in ("patch_embed.proj.weight", "head.weight"))
    architecture, options = request.architecture, request.options
    width, patch_size = patches.shape[0], patches.shape[-1]
    if request.image_size <= 0 or request.image_size % patch_size:
        raise CheckpointError(f"size {request.image_size}: expected a multiple of the patch size, {patch_size}")
    found = {"width": width, "patch_size": patch_size, "output_dim": head.shape[0], "depth": depth_of(state)}
    for name, value in found.items():
        if architecture is not None and getattr(architecture, name) != value:
            raise CheckpointError(
                f"{request.source}: expected a tower whose {name} is {getattr(architecture, name)}, got {value}"
            )
    return ClipConfig(
        width=width,
        depth=found["depth"],
        num_heads=width // _HEAD_WIDTHS.get(width, 64),
        output_dim=found["output_dim"],
        patch_size=patch_size,
        image_size=request.image_size,
        activation="quick_gelu" if architecture is None else architecture.activation,
        self_attending=options.invite,
        norms_output=not options.published,
    )


def _positions(table: torch.Tensor, config: ClipConfig, request: ClipRequest) -> torch.Tensor:
    """Return the position table for the input size: antialiased, but for INViTE (published-system.md, section 10)."""
    architecture, grid = request.architecture, config.token_layout.grid
    trained = round((table.shape[1] - 1) ** 0.5)
    if trained**2 != table.shape[1] - 1:
        raise CheckpointError(f"{request.source}: pos_embed: expected 1 + g * g rows, got {table.shape[1]}")
    if architecture is not None and not architecture.is_resized and trained != grid:
        raise CheckpointError(
            f"size {request.image_size}: {request.source} has positions for {trained * config.patch_size} pixels alone"
        )
    return resize_grid(table, grid, antialias=not config.self_attending)


def state_shapes(architecture: ClipArchitecture, image_size: int) -> Shapes:
    """Return the shapes of a tower's weights by OpenAI's names."""
    width, patch, prefix = architecture.width, architecture.patch_size, architecture.prefix
    table_size = architecture.trained_size if architecture.is_resized else image_size
    shapes: Shapes = {
        "class_embedding": (width,),
        "positional_embedding": (1 + (table_size // patch) ** 2, width),
        "proj": (width, architecture.output_dim),
        "conv1.weight": (width, 3, patch, patch),
    }
    shapes |= {f"{norm}.{part}": (width,) for norm in ("ln_pre", "ln_post") for part in ("weight", "bias")}
    block: Shapes = {
        "ln_1.weight": (width,),
        "ln_1.bias": (width,),
        "attn.in_proj_weight": (3 * width, width),
        "attn.in_proj_bias": (3 * width,),
        "attn.out_proj.weight": (width, width),
        "attn.out_proj.bias": (width,),
        "ln_2.weight": (width,),
        "ln_2.bias": (width,),
        "mlp.c_fc.weight": (4 * width, width),
        "mlp.c_fc.bias": (4 * width,),
        "mlp.c_proj.weight": (width, 4 * width),
        "mlp.c_proj.bias": (width,),
    }
    shapes |= {
        f"transformer.resblocks.{layer}.{part}": shape
        for layer in range(architecture.depth)
        for part, shape in block.items()
    }
    return {f"{prefix}{name}": shape for name, shape in shapes.items()}


FAMILY = BackboneFamily("clip", ARCHITECTURES, ClipOptions, recognizes, from_state, state_shapes)
