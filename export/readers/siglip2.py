"""Reads SigLIP 2's vision towers as transformers and timm lay them out (published-system.md, section 14).

SigLIP's of the first generation have the same names and are read too; NaFlex towers, which take images of any shape,
are not.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F

from export.checkpoint import CheckpointError, load_weights
from export.models.siglip2 import PatchMode, Siglip2Backbone, Siglip2Config
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
)
from export.readers.hub import ANYTHING
from export.readers.layouts import (
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
from export.text_spaces import TEXT_SPACES

SETTING = "siglip2_config"
"""The key of a configuration that chooses this family."""

_HEAD_WIDTHS = {1152: 72, 1536: 96}
"""Of the sizes so400m and giant, by the width of their blocks; 64 for all others."""
_HEAD_PARTS = ("query", "key", "value")

_TRANSFORMERS = Layout(
    marker="head.probe",
    names={
        "embeddings.patch_embedding": "patch_embed.proj",
        "embeddings.position_embedding.weight": "pos_embed",
        "post_layernorm": "norm",
        "head.probe": "head.probe",
        "head.attention.in_proj_weight": "head.qkv.weight",
        "head.attention.in_proj_bias": "head.qkv.bias",
        "head.attention.out_proj": "head.proj",
        "head.layernorm": "head.norm",
        "head.mlp.fc1": "head.mlp.fc1",
        "head.mlp.fc2": "head.mlp.fc2",
    },
    block="encoder.layers.#.",
    block_names=TRANSFORMERS_BLOCK,
    qkv=TRANSFORMERS_QKV,
    ignored=(r"embeddings\.position_ids",),
)
"""Published files have vision_model. before each name, and in those of a whole model the text tower beside it."""
_TIMM = Layout(
    marker="attn_pool.latent",
    names={
        "patch_embed.proj": "patch_embed.proj",
        "pos_embed": "pos_embed",
        "norm": "norm",
        "attn_pool.latent": "head.probe",
        "attn_pool.q": "head.query",
        "attn_pool.kv": "head.kv",
        "attn_pool.proj": "head.proj",
        "attn_pool.norm": "head.norm",
        "attn_pool.mlp.fc1": "head.mlp.fc1",
        "attn_pool.mlp.fc2": "head.mlp.fc2",
    },
    block="blocks.#.",
    block_names=TIMM_BLOCK,
)
_LAYOUTS = (_TRANSFORMERS, _TIMM)


@dataclass(frozen=True, kw_only=True)
class Siglip2Architecture(Architecture):
    """The numbers of a published tower: ``hidden_width`` is that of its feed-forward layers."""

    hidden_width: int
    patch_size: int


class Siglip2Options(FamilyOptions):
    """Attributes: ``patches``, what patches pass after the last norm.

    "pool" lets each pass the pooling head by itself, which puts it where the pooled vector is: in the text space.
    """

    patches: PatchMode = "pool"


Siglip2Request: TypeAlias = BackboneRequest[Siglip2Architecture, Siglip2Options]

_PUBLISHED = "siglip2_base_patch16"
"""What the published system has, at 512 pixels: it has no size in its name."""
_KINDS = (
    ("base_patch16", 768, 12, 3072, (224, 256, 384, 512)),
    ("large_patch16", 1024, 24, 4096, (256, 384, 512)),
    ("so400m_patch16", 1152, 27, 4304, (256, 384, 512)),
    ("so400m_patch14", 1152, 27, 4304, (224,)),  # that for 384 pixels has patches beyond them
)


def _name(kind: str, size: int) -> str:
    return _PUBLISHED if (kind, size) == ("base_patch16", 512) else f"siglip2_{kind}_{size}"


def _architecture(kind: str, width: int, depth: int, hidden: int, size: int) -> Siglip2Architecture:
    """Return the tower of a kind that is published for a size; each has weights, and so a text space, of its own."""
    repository = f"google/siglip2-{kind.replace('_', '-')}-{size}"
    timm = f"vit_{kind}_siglip_{size}.v2_webli"
    return Siglip2Architecture(
        output_dim=width,
        depth=depth,
        hidden_width=hidden,
        patch_size=int(kind[-2:]),
        default_size=size,
        text_space=next(space for space, one in TEXT_SPACES.items() if one.tower_weights == repository),
        files=(WeightFile("model.safetensors", repository, seed=f"{_name(kind, size)}/"),),
        aliases=(f"siglip2_{kind}_{size}", timm, f"timm/{timm}"),
        scales={"out_proj.weight": 0.3, "mlp.fc2.weight": 0.3},
    )


ARCHITECTURES = {
    _name(kind, size): _architecture(kind, width, depth, hidden, size)
    for kind, width, depth, hidden, sizes in _KINDS
    for size in sizes
}
"""The published towers."""


def recognizes(state: StateDict) -> bool:
    """Return whether a state dict holds a SigLIP vision tower, in either layout."""
    return find_layout(state, _LAYOUTS) is not None


def from_state(state: StateDict, request: Siglip2Request) -> Siglip2Backbone:
    """Return the tower of a state dict.

    Raises:
        CheckpointError: a weight is missing, unknown or wrongly shaped, or the size is not that of its positions.
    """
    layout, source = find_layout(state, _LAYOUTS), request.source
    if layout is None:
        raise CheckpointError(
            f"{source}: expected the weights of a SigLIP vision tower, {_TRANSFORMERS.marker} or {_TIMM.marker} among "
            "them"
        )
    ours = to_our_names(state, layout, source)
    if weight(ours, "patch_embed.proj.weight", source).ndim != 4:
        raise CheckpointError(
            f"{source}: a NaFlex tower, whose patches come from images of any shape; expected one of a fixed size, "
            "google/siglip2-base-patch16-512 for example"
        )
    positions = weight(ours, "pos_embed", source)
    ours["pos_embed"] = positions.reshape(1, *positions.shape[-2:])
    _split_head(ours)
    config = _config(ours, request)
    ours["head.query"] = _projected_probe(ours, config.width, source)
    with torch.device("meta"):
        backbone = Siglip2Backbone(config)
    load_weights(backbone, ours, source)
    return backbone


def _split_head(ours: StateDict) -> None:
    """Name the parts of the pooling head's projection, which layouts join: all three, or keys and values."""
    for joined, parts in (("qkv", _HEAD_PARTS), ("kv", _HEAD_PARTS[1:])):
        for kind in ("weight", "bias"):
            value = ours.pop(f"head.{joined}.{kind}", None)
            if value is not None:
                ours |= {
                    f"head.{part}.{kind}": third
                    for part, third in zip(parts, value.tensor_split(len(parts)), strict=True)
                }


def _projected_probe(ours: StateDict, width: int, source: str) -> torch.Tensor:
    """Return the pooling head's query (1, 1, D), and leave out what it is made of."""
    shapes: Shapes = {
        "head.probe": (1, 1, width),
        "head.query.weight": (width, width),
        "head.query.bias": (width,),
    }
    parts = {name: weight(ours, name, source) for name in shapes}
    for name, shape in shapes.items():
        if ours.pop(name).shape != shape:
            raise CheckpointError(f"{source}: {name}: expected shape {shape}, got {tuple(parts[name].shape)}")
    return F.linear(*(part.float() for part in parts.values()))


def _config(ours: StateDict, request: Siglip2Request) -> Siglip2Config:
    source, architecture = request.source, request.architecture
    patches, hidden = weight(ours, "patch_embed.proj.weight", source), weight(ours, "head.mlp.fc1.weight", source)
    width, patch_size = patches.shape[0], patches.shape[-1]
    found = {"output_dim": width, "patch_size": patch_size, "hidden_width": hidden.shape[0], "depth": depth_of(ours)}
    check_numbers(found, architecture, "a tower", source)
    _check_size(ours["pos_embed"].shape[1], patch_size, request)
    return Siglip2Config(
        width=width,
        depth=found["depth"],
        num_heads=width // _HEAD_WIDTHS.get(width, 64),
        hidden_width=hidden.shape[0],
        patch_size=patch_size,
        image_size=request.image_size,
        patches=request.options.patches,
    )


def _check_size(num_positions: int, patch_size: int, request: Siglip2Request) -> None:
    """Raise if the input's patches are not those that the tower has positions for."""
    grid = round(num_positions**0.5)
    if grid**2 != num_positions:
        raise CheckpointError(f"{request.source}: pos_embed: expected g * g rows, got {num_positions}")
    if request.image_size != grid * patch_size:
        raise CheckpointError(
            f"size {request.image_size}: {request.source} has positions for {grid * patch_size} pixels alone"
        )


def state_shapes(architecture: Siglip2Architecture, image_size: int) -> Shapes:
    """Return the shapes of a tower's weights by transformers' names, with a position table for the size."""
    width, hidden, patch = architecture.output_dim, architecture.hidden_width, architecture.patch_size
    shapes: Shapes = {
        "embeddings.patch_embedding.weight": (width, 3, patch, patch),
        "embeddings.patch_embedding.bias": (width,),
        "embeddings.position_embedding.weight": ((image_size // patch) ** 2, width),
        "head.probe": (1, 1, width),
        "head.attention.in_proj_weight": (3 * width, width),
        "head.attention.in_proj_bias": (3 * width,),
    }
    shapes |= linear_shapes("head.attention.out_proj", width, width) | _feed_forward("head.mlp", width, hidden)
    shapes |= norm_shapes("post_layernorm", width) | norm_shapes("head.layernorm", width)
    block = norm_shapes("layer_norm1", width) | norm_shapes("layer_norm2", width) | _feed_forward("mlp", width, hidden)
    for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
        block |= linear_shapes(f"self_attn.{part}", width, width)
    shapes |= in_each_block("encoder.layers.", architecture.depth, block)
    return {f"vision_model.{name}": shape for name, shape in shapes.items()}


def _feed_forward(name: str, width: int, hidden: int) -> Shapes:
    return linear_shapes(f"{name}.fc1", width, hidden) | linear_shapes(f"{name}.fc2", hidden, width)


def _chosen_by(settings: Settings) -> str | None:
    if not settings.get(SETTING):
        return None
    model = _of_model(settings).get("model_id", "google/siglip2-base-patch16-512")
    found = FAMILY.find(str(model))
    if found is None:
        known = ", ".join(file.repository or file.name for one in ARCHITECTURES.values() for file in one.files)
        raise CheckpointError(f"{SETTING}: model_id: expected one of {known}, got {model!r}")
    return found


def _options_of(settings: Settings) -> Mapping[str, Any]:
    """Return what a configuration makes of patches: raw ones, unless it says otherwise."""
    model = _of_model(settings)
    if model.get("project_patches_using_mlp"):
        return {"patches": "mlp"}
    if model.get("project_patches_using_attention_pooling_head_to_each_patch"):
        return {"patches": "pool"}
    return {"patches": "raw"} if model else {}


def _of_model(settings: Settings) -> Mapping[str, Any]:
    """Return the settings of the model; a name alone is its identity."""
    chosen = settings.get(SETTING) or {}
    return chosen if isinstance(chosen, Mapping) else {"model_id": chosen}


FAMILY = BackboneFamily(
    "siglip2",
    ARCHITECTURES,
    Siglip2Options,
    recognizes,
    from_state,
    state_shapes,
    chosen_by=_chosen_by,
    settings=frozenset({SETTING}),
    options_of=_options_of,
    size_of=lambda settings: _of_model(settings).get("image_size"),
    weights_of=lambda settings: _of_model(settings).get("checkpoint_path"),
    banks_of=lambda *_: tuple(
        bank_name(prefix, middle, ANYTHING) for prefix, middle in (("*siglip*", ""), ("*", "*siglip*"), ("clip-", ""))
    ),
)
