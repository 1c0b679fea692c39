"""Reads CLIP's vision towers as OpenAI, open_clip, timm and transformers lay them out.

See published-system.md, section 10.

INViTE is CLIP with one change, the option ``invite``; DenseCLIP is CLIP by other names, at one size.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, TypeAlias

import torch
from pydantic import Field
from torch import Tensor

from export.checkpoint import CheckpointError, load_weights
from export.models.clip import ClipBackbone, ClipConfig
from export.models.vit import Activation, resize_grid
from export.readers.backbone_family import (
    Architecture,
    BackboneFamily,
    BackboneRequest,
    FamilyOptions,
    Settings,
    Shapes,
    StateDict,
    WeightFile,
    bank_name,
    check_numbers,
    check_whole_patches,
    published_banks,
)
from export.readers.layouts import (
    OPENAI_BLOCK,
    TIMM_BLOCK,
    TRANSFORMERS_BLOCK,
    TRANSFORMERS_QKV,
    Layout,
    depth_of,
    find_layout,
    in_each_block,
    linear_shapes,
    norm_shapes,
    to_our_names,
)
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
    block_names=OPENAI_BLOCK,
)
"""Also open_clip's; and DenseCLIP's, with another prefix."""
_PATCHES, _ALPHA = "patch_embed.proj.weight", "conv1_alpha.weight"
_ALPHACLIP = replace(
    _OPENAI,
    marker=_ALPHA,
    names={**_OPENAI.names, _ALPHA: "patch_embed.alpha.weight"},
    block_names={name: ours for name, ours in _OPENAI.block_names.items() if "in_proj" not in name}
    | {"attn.in_proj": "attn.qkv"},
)
_TIMM = Layout(
    marker="norm_pre.weight",
    names={name: name for name in ("cls_token", "pos_embed", "patch_embed.proj", "norm_pre", "norm", "head")},
    block="blocks.#.",
    block_names=TIMM_BLOCK,
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
    block_names=TRANSFORMERS_BLOCK,
    qkv=TRANSFORMERS_QKV,
    ignored=(r"vision_model\.embeddings\.position_ids", r"text_model\..*", r"text_projection\..*", "logit_scale"),
)
_LAYOUTS = (_ALPHACLIP, _OPENAI, _TIMM, _TRANSFORMERS)
"""The first that fits is a state dict's."""


@dataclass(frozen=True, kw_only=True)
class ClipArchitecture(Architecture):
    """The numbers of a published tower.

    Attributes:
        width: of its blocks.
        trained_size: the input size of its position table; its only one, unless it ``is_resized``.
        prefix: of its names in the layout of OpenAI, for made-up weights.
        publishes_norm: whether the published system, too, has the last norm before the projection.
        has_alpha: whether it embeds an alpha plane beside the pixels, as AlphaCLIP does.
    """

    width: int
    patch_size: int
    activation: Activation = "quick_gelu"
    trained_size: int = 224
    is_resized: bool = True
    prefix: str = "visual."
    publishes_norm: bool = True
    has_alpha: bool = False


class ClipOptions(FamilyOptions):
    """Attributes: ``invite``, how many of the last blocks let each token attend to itself alone (INViTE: 1).

    ``published`` leaves out the last norm of an open_clip tower, as the published system does (published-system.md,
    section 10).
    """

    invite: Annotated[int, Field(ge=0)] = 0
    published: bool = False


ClipRequest: TypeAlias = BackboneRequest[ClipArchitecture, ClipOptions]
ResizePositions: TypeAlias = Callable[[Tensor, int], Tensor]

ARCHITECTURES = {
    f"clip_vitb{patch}": ClipArchitecture(
        output_dim=512,
        depth=12,
        width=768,
        patch_size=patch,
        text_space=f"clip-b{patch}",
        files=(
            WeightFile(
                f"ViT-B-{patch}.pt",
                f"openai/clip-vit-base-patch{patch}",
                seed=f"clip_vitb{patch}/",
                mirrors=(f"timm/vit_base_patch{patch}_clip_224.openai",),
                hub_names=("model.safetensors", "pytorch_model.bin"),
            ),
        ),
        aliases=(
            f"vit_base_patch{patch}_clip_224.openai",
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
        publishes_norm=False,
        files=(
            WeightFile(
                "open_clip_pytorch_model.bin",
                "laion/CLIP-ViT-H-14-laion2B-s32B-b79K",
                seed="openclip_vith14/",
                mirrors=("timm/vit_huge_patch14_clip_224.laion2b",),
                hub_names=("model.safetensors", "open_clip_pytorch_model.bin", "pytorch_model.bin"),
            ),
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
        files=(WeightFile("ViT-B-DenseCLIP.pth", None, seed="denseclip_vitb16/", origin="of DenseCLIP's model zoo"),),
    ),
    "alphaclip_vitb16": ClipArchitecture(
        output_dim=512,
        depth=12,
        width=768,
        patch_size=16,
        text_space="clip-b16",
        has_alpha=True,
        prefix="",
        files=(
            WeightFile(
                "clip_b16_grit1m_fultune_8xe.pth", None, seed="alphaclip_vitb16/", origin="of AlphaCLIP's model zoo"
            ),
        ),
        scales={_ALPHA: 0.3},
    ),
}
"""The published towers."""


def recognizes(state: StateDict) -> bool:
    """Return whether a state dict holds a CLIP vision tower, in any layout."""
    return find_layout(state, _LAYOUTS) is not None


def from_state(state: StateDict, request: ClipRequest, resize: ResizePositions | None = None) -> ClipBackbone:
    """Return the tower of a state dict, its position table resized for the image size.

    Args:
        resize: returns a position table (1, 1 + g * g, W) for another grid; None for CLIP's own rule.

    Raises:
        CheckpointError: a weight is missing, unknown or wrongly shaped, or the size does not suit.
    """
    layout, source = find_layout(state, _LAYOUTS), request.source
    if layout is None:
        raise CheckpointError(f"{source}: expected the weights of a CLIP vision tower, {_OPENAI.marker} among them")
    ours = to_our_names(state, layout, source)
    has_alpha = layout is _ALPHACLIP
    if layout in (_OPENAI, _ALPHACLIP) and "head.weight" in ours:
        ours["head.weight"] = ours["head.weight"].T  # stored as (width, D)
    ours["cls_token"] = weight(ours, "cls_token", source).reshape(1, 1, -1)
    positions = weight(ours, "pos_embed", source)
    ours["pos_embed"] = positions.reshape(1, *positions.shape[-2:])
    config = replace(_config(ours, request), has_alpha=has_alpha)
    if request.architecture is not None and request.architecture.has_alpha != has_alpha:
        raise CheckpointError(f"{source}: {_ALPHA}: expected it in AlphaCLIP's towers, and in no others")
    ours["pos_embed"] = _positions(ours["pos_embed"].float(), config, request, resize)
    if not config.norms_output:
        ours = {name: value for name, value in ours.items() if not name.startswith("norm.")}
    with torch.device("meta"):
        backbone = ClipBackbone(config)
    load_weights(backbone, ours, source)
    return backbone


def _config(state: StateDict, request: ClipRequest) -> ClipConfig:
    patches, head = (weight(state, name, request.source) for name in (_PATCHES, "head.weight"))
    architecture, options = request.architecture, request.options
    width, patch_size = patches.shape[0], patches.shape[-1]
    check_whole_patches(request.image_size, patch_size)
    found = {"width": width, "patch_size": patch_size, "output_dim": head.shape[0], "depth": depth_of(state)}
    check_numbers(found, architecture, "a tower", request.source)
    return ClipConfig(
        width=width,
        depth=found["depth"],
        num_heads=width // _HEAD_WIDTHS.get(width, 64),
        output_dim=found["output_dim"],
        patch_size=patch_size,
        image_size=request.image_size,
        activation="quick_gelu" if architecture is None else architecture.activation,
        self_attending=options.invite,
        norms_output=not options.published or (architecture is not None and architecture.publishes_norm),
    )


def _positions(table: Tensor, config: ClipConfig, request: ClipRequest, resize: ResizePositions | None) -> Tensor:
    """Return the position table for the input size: antialiased, but for INViTE (published-system.md, section 10)."""
    architecture, grid = request.architecture, config.token_layout.grid
    trained = round((table.shape[1] - 1) ** 0.5)
    if trained**2 != table.shape[1] - 1:
        raise CheckpointError(f"{request.source}: pos_embed: expected 1 + g * g rows, got {table.shape[1]}")
    if architecture is not None and not architecture.is_resized and trained != grid:
        raise CheckpointError(
            f"size {request.image_size}: {request.source} has positions for {trained * config.patch_size} pixels alone"
        )
    return resize(table, grid) if resize else resize_grid(table, grid, antialias=not config.self_attending)


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
    if architecture.has_alpha:
        shapes[_ALPHA] = (width, 1, patch, patch)
    shapes |= norm_shapes("ln_pre", width) | norm_shapes("ln_post", width)
    in_proj = "attn.in_proj." if architecture.has_alpha else "attn.in_proj_"
    block: Shapes = {
        **norm_shapes("ln_1", width),
        f"{in_proj}weight": (3 * width, width),
        f"{in_proj}bias": (3 * width,),
        **linear_shapes("attn.out_proj", width, width),
        **norm_shapes("ln_2", width),
        **linear_shapes("mlp.c_fc", width, 4 * width),
        **linear_shapes("mlp.c_proj", 4 * width, width),
    }
    shapes |= in_each_block("transformer.resblocks.", architecture.depth, block)
    return {f"{prefix}{name}": shape for name, shape in shapes.items()}


# Configurations


def _part(settings: Settings, key: str) -> Mapping[str, Any]:
    part = settings[key]
    if not isinstance(part, dict):
        raise CheckpointError(f"{key}: expected keys and values, got {part!r}")
    return part


def _of_invite(settings: Settings) -> str:
    """Return the tower that INViTE changes: by its own key, else by others that name one."""
    named = _part(settings, "invite_config").get("name")
    for name in (named,) if named else (settings.get("dino_model"), settings.get("clip_model_name")):
        patch = re.search(r"(?:B[/-]?|patch)(16|32)\b", str(name).replace("_", " "))
        if patch:
            return f"clip_vitb{patch[1]}"
    raise CheckpointError(f"invite_config: name: expected ViT-B/16 or ViT-B/32, got {named!r}")


def _of_open_clip(settings: Settings) -> str:
    name = str(settings.get("dino_model"))
    if FAMILY.find(name) != "openclip_vith14":
        raise CheckpointError(f"use_open_clip: expected ViT-H/14 by dino_model, got {name!r}")
    return "openclip_vith14"


def _of_denseclip(settings: Settings) -> str:
    name = str(settings["denseclip_config"])
    if "vitb16" not in name:
        raise CheckpointError(
            "denseclip_config: expected denseclip_segmentation_vitb16, or ..._long_ctx with texts of 77 positions, got "
            f"{name!r}"
        )
    return "denseclip_vitb16"


def _of_alphaclip(settings: Settings) -> str:
    """Return AlphaCLIP's own tower, or what the published system has in its place (published-system.md, section 17)."""
    name = _part(settings, "alphaclip_config").get("name", "ViT-B/16")
    if name != "ViT-B/16":
        raise CheckpointError(f"alphaclip_config: name: expected ViT-B/16, got {name!r}")
    return "clip_vitb16" if settings.get("published") else "alphaclip_vitb16"


_CHOICES: Mapping[str, Callable[[Settings], str]] = {
    "invite_config": _of_invite,
    "use_open_clip": _of_open_clip,
    "denseclip_config": _of_denseclip,
    "alphaclip_config": _of_alphaclip,
}
"""The keys that choose a tower, and how."""


def _chosen_by(settings: Settings) -> str | None:
    keys = [key for key in _CHOICES if settings.get(key)]
    if len(keys) > 1:
        raise CheckpointError(f"{', '.join(keys)}: they ask for different backbones; leave one")
    return _CHOICES[keys[0]](settings) if keys else None


def _options_of(settings: Settings) -> Mapping[str, Any]:
    if not settings.get("invite_config"):
        return {}
    blocks = _part(settings, "invite_config").get("extract_last_k_th_token", 1)
    return {"invite": 0 if blocks == -1 else blocks}


def _size_of(settings: Settings) -> int | None:
    return _part(settings, "invite_config").get("resolution") if settings.get("invite_config") else None


def _weights_of(settings: Settings) -> str | None:
    """Return AlphaCLIP's file, or that of the DenseCLIP whose texts are longer, which is another model."""
    if settings.get("alphaclip_config") and not settings.get("published"):
        checkpoint = _part(settings, "alphaclip_config").get("alpha_vision_checkpoint")
        return None if checkpoint is None else str(checkpoint)
    return "ViT-B-DenseCLIP_long_ctx.pth" if "long_ctx" in str(settings.get("denseclip_config")) else None


def _banks_of(settings: Settings, architecture: ClipArchitecture) -> tuple[str, ...]:
    tower, dense = settings.get("clip_model_name"), settings.get("denseclip_config")
    if dense:
        name = re.sub(r"\.ya?ml$", "", str(dense).rsplit("/", 1)[-1])
        return (bank_name("denseclip-", f"-denseclip-{name}", str(tower or "DenseClip")),)
    if settings.get("use_open_clip"):
        return (bank_name("clip-", "-open_clip", str(tower or settings["dino_model"])),)
    known = next((alias for alias in architecture.aliases if alias.startswith("ViT-")), "ViT-B/16")
    if tower and FAMILY.find(str(tower)) not in (None, FAMILY.find(str(known))):
        raise CheckpointError(f"clip_model_name: expected {known}, the backbone's own text tower, got {tower}")
    plain = published_banks({"clip_model_name": tower or known}, architecture)
    if not settings.get("invite_config"):
        return plain
    return tuple(bank.replace("clip-", "invite-", 1) for bank in plain) + plain


FAMILY = BackboneFamily(
    "clip",
    ARCHITECTURES,
    ClipOptions,
    recognizes,
    from_state,
    state_shapes,
    chosen_by=_chosen_by,
    settings=frozenset(_CHOICES),
    options_of=_options_of,
    size_of=_size_of,
    weights_of=_weights_of,
    banks_of=_banks_of,
)
