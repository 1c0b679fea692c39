"""Reads RegionCLIP's vision tower, a ResNet of CLIP's kind, its own or OpenAI's (published-system.md, section 16).

Batch norms whose statistics are fixed are folded into the convolutions before them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from export.checkpoint import CheckpointError, load_weights
from export.models.regionclip import PATCH_SIZE, PatchSource, RegionClipBackbone, RegionClipConfig
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
)
from export.readers.layouts import linear_shapes
from export.readers.weight_files import weight

_MARKER = "attnpool.positional_embedding"
"""A weight that every ResNet of CLIP's kind has; what stands before it is the prefix of all its weights."""
_PREFIXES = ("backbone.", "visual.", "")
_HEAD_WIDTH = 64
_NORM_EPS = 1e-5
_NORM_PARTS = ("weight", "bias", "running_mean", "running_var")
_CONVOLUTION = re.compile(r"(.*?)(conv([123])|downsample\.0)\.weight")
_BLOCK = re.compile(r"layer([1-4])\.(\d+)\.")
_COUNTERS = ".num_batches_tracked"


@dataclass(frozen=True, kw_only=True)
class RegionClipArchitecture(Architecture):
    """The numbers of a published tower.

    Attributes:
        channels: of its stem.
        layers: the number of blocks at each resolution.
        trained_grid: patches per side of its positions.
    """

    channels: int
    layers: tuple[int, int, int, int]
    trained_grid: int = 7


class RegionClipOptions(FamilyOptions):
    """Attributes: ``patches``, the attention pool's outputs for them, or the map's own, "projected"."""

    patches: PatchSource = "attention"


RegionClipRequest: TypeAlias = BackboneRequest[RegionClipArchitecture, RegionClipOptions]

ARCHITECTURES = {
    "regionclip_rn50": RegionClipArchitecture(
        output_dim=1024,
        depth=16,
        channels=64,
        layers=(3, 4, 6, 3),
        text_space="regionclip-rn50",
        files=(
            WeightFile(
                "regionclip_pretrained-cc_rn50.pth",
                None,
                seed="regionclip_rn50/",
                origin="of microsoft/RegionCLIP's model zoo",
            ),
        ),
        scales={f"{name}.weight": 2**0.5 for name in ("conv1", "conv2", "conv3", "downsample.0")},
    )
}
"""The published towers."""


def recognizes(state: StateDict) -> bool:
    """Return whether a state dict holds a ResNet of CLIP's kind."""
    return _prefix_in(state) is not None


def _prefix_in(state: StateDict) -> str | None:
    return next((prefix for prefix in _PREFIXES if f"{prefix}{_MARKER}" in state), None)


def from_state(state: StateDict, request: RegionClipRequest) -> RegionClipBackbone:
    """Return the tower of a state dict, its norms folded and its positions resized for the image size.

    Raises:
        CheckpointError: a weight is missing, unknown or wrongly shaped, or the size does not suit.
    """
    prefix, source = _prefix_in(state), request.source
    if prefix is None:
        raise CheckpointError(f"{source}: expected the weights of a RegionCLIP tower, backbone.{_MARKER} among them")
    own = {
        name.removeprefix(prefix): value
        for name, value in state.items()
        if name.startswith(prefix) and not name.endswith(_COUNTERS)
    }
    if not prefix:
        own = {name: value for name, value in own.items() if re.match(r"(conv|bn|layer|attnpool)", name)}
    table = weight(own, _MARKER, source).float()
    config = _config(own, table, request)
    ours = dict(_folded(own, source))
    ours[_MARKER] = _resized(table, config.token_layout.grid)
    with torch.device("meta"):
        backbone = RegionClipBackbone(config)
    load_weights(backbone, ours, source)
    return backbone


def _config(state: StateDict, table: Tensor, request: RegionClipRequest) -> RegionClipConfig:
    source, architecture = request.source, request.architecture
    check_whole_patches(request.image_size, PATCH_SIZE)
    if table.ndim != 2 or round((len(table) - 1) ** 0.5) ** 2 != len(table) - 1:
        raise CheckpointError(f"{source}: {_MARKER}: expected shape (1 + g * g, W), got {tuple(table.shape)}")
    blocks = {(int(block[1]), int(block[2])) for name in state if (block := _BLOCK.match(name))}
    first, second, third, fourth = (sum(layer == number for layer, _ in blocks) for number in range(1, 5))
    config = RegionClipConfig(
        channels=weight(state, "conv3.weight", source).shape[0],
        layers=(first, second, third, fourth),
        output_dim=weight(state, "attnpool.c_proj.weight", source).shape[0],
        num_heads=table.shape[1] // _HEAD_WIDTH,
        image_size=request.image_size,
        trained_grid=round((len(table) - 1) ** 0.5),
        patches=request.options.patches,
    )
    found = {name: getattr(config, name) for name in ("channels", "layers", "output_dim")}
    check_numbers(found, architecture, "a tower", source)
    return config


def _folded(state: StateDict, source: str) -> Iterator[tuple[str, Tensor]]:
    """Yield weights by our names: each convolution with the norm after it, and all that has no norm."""
    norms = set()
    for name, value in state.items():
        convolution = _CONVOLUTION.fullmatch(name)
        if convolution is None:
            continue
        norm = f"{convolution[1]}bn{convolution[3]}" if convolution[3] else f"{convolution[1]}downsample.1"
        names = [f"{norm}.{part}" for part in _NORM_PARTS]
        norms.update(names)
        gain, shift, mean, variance = (weight(state, part, source).double() for part in names)
        if value.ndim != 4 or any(part.shape != value.shape[:1] for part in (gain, shift, mean, variance)):
            raise CheckpointError(f"{source}: {norm}: expected {len(value)} channels, those of {name}")
        scale = gain / (variance + _NORM_EPS).sqrt()
        yield name, (value.double() * scale[:, None, None, None]).float()
        yield name.removesuffix("weight") + "bias", (shift - mean * scale).float()
    yield from (
        (name, value) for name, value in state.items() if name not in norms and not _CONVOLUTION.fullmatch(name)
    )


def _resized(table: Tensor, grid: int) -> Tensor:
    """Return positions (1 + g * g, W) with their grid resized, bilinear, cls as it is: (1 + grid^2, W)."""
    trained = round((len(table) - 1) ** 0.5)
    if trained == grid:
        return table
    places = table[1:].unflatten(0, (trained, trained)).permute(2, 0, 1)[None]
    resized = F.interpolate(places, size=(grid, grid), mode="bilinear")
    return torch.cat([table[:1], resized[0].flatten(1).T])


def state_shapes(architecture: RegionClipArchitecture, image_size: int) -> Shapes:  # noqa: ARG001  # any size's
    """Return the shapes of a tower's weights by RegionCLIP's names.

    Raises:
        CheckpointError: another number of blocks is asked for.
    """
    if architecture.depth != sum(architecture.layers):
        raise CheckpointError(f"depth: expected {sum(architecture.layers)}, all blocks, got {architecture.depth}")
    channels, width = architecture.channels, architecture.channels * 32
    shapes: Shapes = {}
    stem = ((3, channels // 2), (channels // 2, channels // 2), (channels // 2, channels))
    for number, (channels_in, channels_out) in enumerate(stem, start=1):
        shapes |= _convolution(f"conv{number}", f"bn{number}", channels_in, channels_out, 3)
    channels_in = channels
    for layer, blocks in enumerate(architecture.layers):
        inner = channels * 2**layer
        for block in range(blocks):
            name = f"layer{layer + 1}.{block}."
            for number, (first, second, kernel) in enumerate(
                ((channels_in, inner, 1), (inner, inner, 3), (inner, 4 * inner, 1)), start=1
            ):
                shapes |= _convolution(f"{name}conv{number}", f"{name}bn{number}", first, second, kernel)
            if block == 0:
                shapes |= _convolution(f"{name}downsample.0", f"{name}downsample.1", channels_in, 4 * inner, 1)
            channels_in = 4 * inner
    shapes[_MARKER] = (1 + architecture.trained_grid**2, width)
    for part, rows in (("q", width), ("k", width), ("v", width), ("c", architecture.output_dim)):
        shapes |= linear_shapes(f"attnpool.{part}_proj", width, rows)
    return {f"{_PREFIXES[0]}{name}": shape for name, shape in shapes.items()}


def _convolution(name: str, norm: str, channels_in: int, channels_out: int, kernel: int) -> Shapes:
    shapes: Shapes = {f"{name}.weight": (channels_out, channels_in, kernel, kernel)}
    return shapes | {f"{norm}.{part}": (channels_out,) for part in _NORM_PARTS}


# Configurations


def _part(settings: Settings) -> Mapping[str, Any]:
    part = settings.get("regionclip_config")
    if not isinstance(part, dict):
        raise CheckpointError(f"regionclip_config: expected keys and values, got {part!r}")
    return part


def _resnets(settings: Settings) -> Mapping[str, Any]:
    """Return the settings of the ResNet, which are of detectron2."""
    model = _part(settings).get("MODEL")
    resnets = model.get("RESNETS") if isinstance(model, dict) else None
    return resnets if isinstance(resnets, dict) else {}


def _chosen_by(settings: Settings) -> str | None:
    if not settings.get("regionclip_config"):
        return None
    part, resnets = _part(settings), _resnets(settings)
    name = f"{part.get('config_name')} {part.get('checkpoint')}"
    if "rn50x4" in name.lower():
        raise CheckpointError(f"regionclip_config: expected RegionCLIP's RN50, got {name}")
    if "res5" not in resnets.get("OUT_FEATURES", ["res5"]):
        raise CheckpointError(
            "regionclip_config: MODEL.RESNETS.OUT_FEATURES: expected res5 among them, whose map lies in the space of "
            f"texts; those of earlier layers have only their width, got {resnets['OUT_FEATURES']}"
        )
    return "regionclip_rn50"


def _options_of(settings: Settings) -> Mapping[str, Any]:
    is_pooled = (
        _part(settings).get("use_attnpool_for_spatial_feats", True) if settings.get("regionclip_config") else True
    )
    return {} if is_pooled else {"patches": "projected"}


def _size_of(settings: Settings) -> int | None:
    return _resnets(settings).get("IMAGE_RESOLUTION") if settings.get("regionclip_config") else None


def _checkpoint(settings: Settings) -> str | None:
    named = _part(settings).get("checkpoint") if settings.get("regionclip_config") else None
    return None if named is None else str(named)


def _banks_of(settings: Settings, architecture: RegionClipArchitecture) -> tuple[str, ...]:
    checkpoint = Path(_checkpoint(settings) or architecture.files[0].name).stem
    tower = str(settings.get("clip_model_name") or "RegionCLIP")
    return (bank_name("regionclip-", f"-regionclip-{checkpoint}", tower),)


FAMILY = BackboneFamily(
    "regionclip",
    ARCHITECTURES,
    RegionClipOptions,
    recognizes,
    from_state,
    state_shapes,
    chosen_by=_chosen_by,
    settings=frozenset({"regionclip_config"}),
    options_of=_options_of,
    size_of=_size_of,
    weights_of=_checkpoint,
    banks_of=_banks_of,
)
