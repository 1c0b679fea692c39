"""Reads recordings of the published system as checkpoints: the made-up weights that one was made with.

``recording:PATH/NAME.json[,variant=TAG][,option=value...]``: a recording may hold some of its numbers a second time, as
another variant of the same backbone gives them; their names then have a tag before or behind (published-system.md,
section 8). Other options are those of `export.readers.seeded`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from export.checkpoint import Checkpoint, CheckpointError
from export.readers.families import find_architecture
from export.readers.recorded_decoders import RecordedDecoder, kind_of, read_recorded_decoder
from export.readers.seeded import make_checkpoint, parse

PREFIX = "recording:"

Settings = Mapping[str, Any]


@dataclass(frozen=True)
class RecordedBackbone:
    """What a recording's "arch" is called here.

    Attributes:
        arch: a regular expression of what the recording has.
        name: a seeded name, with options; ``{layers}`` is the number of blocks that were recorded.
        variants: by their tags, seeded names for the rest of what the recording holds.
        spread: how many times the usual difference between two float32 programs there may be.
    """

    arch: str
    name: str
    variants: Mapping[str, str] = field(default_factory=dict)
    spread: float = 1.0


_BACKBONES = (
    RecordedBackbone("INViTE ViT-B/16", "clip_vitb16,invite={extract_last_k_th_token}"),
    RecordedBackbone(
        r"open_clip ViT-H-14, (?P<layers>\d+) of 32 blocks",
        "openclip_vith14,depth={layers},published=1",
        {"with_ln_post": "openclip_vith14,depth={layers}"},
    ),
    RecordedBackbone(
        "google/siglip2-base-patch16-512 vision tower",
        "siglip2_base_patch16,depth={layers},patches=raw",
        {tag: f"siglip2_base_patch16,depth={{layers}},patches={tag}" for tag in ("mlp", "pool")},
    ),
    RecordedBackbone(
        "dinov2_vitl14_reg4_dinotxt.*", "dinotxt_vitl14,published=1", {"head": "dinotxt_vitl14,published=0"}
    ),
    RecordedBackbone(r"(?P<name>dinov3_vit\w+)", "{name},periods=float32", {"bf16_periods": "{name},periods=bfloat16"}),
    RecordedBackbone(
        r"ProxyCLIP ViT-B/16 \+ (?P<vfm>\w+)",
        "proxyclip_vitb16_{vfm},pixels=imagenet",
        {"batched": "proxyclip_vitb16_{vfm},pixels=imagenet,published=1"},
    ),
    RecordedBackbone(r"DenseCLIP ViT-B/16.*", "denseclip_vitb16"),
    RecordedBackbone(
        "RegionCLIP RN50",
        "regionclip_rn50",
        {"c_proj_only": "regionclip_rn50,patches=projected"},
        spread=50,  # its made-up weights make attention that is all or nothing: published-system.md, section 16
    ),
    RecordedBackbone(
        "AlphaCLIP ViT-B/16", "alphaclip_vitb16", {"published": "clip_vitb16", "mended": "alphaclip_vitb16"}
    ),
)
"""What is recorded under a published name needs no line."""


def read_recording(name: str) -> Checkpoint:
    """Make the checkpoint that a recording was made with.

    Raises:
        CheckpointError: there is no such recording, or it is of an unknown backbone.
    """
    path, *options = name.removeprefix(PREFIX).split(",")
    contents = read_json(Path(path))
    if kind_of(contents) is not None:
        tag = next((option.removeprefix("variant=") for option in options if option.startswith("variant=")), "")
        return read_recorded_decoder(RecordedDecoder(Path(path), contents, tag), name)
    tags = [option.removeprefix("variant=") for option in options if option.startswith("variant=")]
    settings = read_settings(Path(path))
    found = variants(settings, path)
    tag = tags[-1] if tags else ""
    if tag not in found:
        raise CheckpointError(f"{name}: expected a variant of {', '.join(filter(None, found))}, got {tag!r}")
    seeded = parse(",".join([found[tag], *(option for option in options if not option.startswith("variant="))]))
    space = seeded.family.space_of(seeded.architecture, seeded.family_options)
    if "normalize" in settings:  # what was recorded may rest on another rule than the space's
        rows = str(settings.get("bank", ""))
        space = replace(space, unit_output=bool(settings["normalize"]), unit_rows=rows.startswith("normalised"))
    return make_checkpoint(seeded, name, space)


def read_settings(path: Path) -> Settings:
    """Return what the .json of a recording of a backbone says.

    Raises:
        CheckpointError: there is none, or it is not such a recording's.
    """
    settings = read_json(path)
    needed = ("arch", "dim", "n_memory", "images")
    missing = [key for key in needed if key not in settings]
    if missing:
        raise CheckpointError(f"{path}: not the settings of a recording: {missing[0]} is missing")
    return settings


def read_json(path: Path) -> Settings:
    """Return what the .json of any recording says.

    Raises:
        CheckpointError: there is none, or it is not a recording's.
    """
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: not the settings of a recording: {error}") from None
    if not isinstance(settings, dict):
        raise CheckpointError(f"{path}: not the settings of a recording: expected names and values")
    return settings


def variants(settings: Settings, source: str) -> dict[str, str]:
    """Return the seeded names of a recording's variants by their tags; that of most of it has none.

    Raises:
        CheckpointError: its backbone is not known here.
    """
    arch = str(settings["arch"])
    common = f",size={settings['dim']},memory={settings['n_memory']},salt={settings.get('salt', '')}"
    if found := _match(arch):
        known, match = found
        parts = {**settings, **match.groupdict()}
        names = {"": known.name} | dict(known.variants)
        return {tag: f"seeded:{one.format_map(parts)}{common}" for tag, one in names.items()}
    if find_architecture(arch) is None:
        raise CheckpointError(f"{source}: arch: expected a published backbone, got {arch!r}")
    return {"": f"seeded:{arch}{common}"}


def spread(settings: Settings) -> float:
    """Return how many times the usual difference between two float32 programs a recording may show."""
    found = _match(str(settings["arch"]))
    return found[0].spread if found else 1.0


def _match(arch: str) -> tuple[RecordedBackbone, re.Match[str]] | None:
    matches = ((known, re.fullmatch(known.arch, arch)) for known in _BACKBONES)
    return next(((known, match) for known, match in matches if match), None)
