"""Reads Patch-ioner configurations (YAML) and the files they name (published-system.md, section 7)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import torch
import yaml

from export.checkpoint import Checkpoint, CheckpointError, MemorySource
from export.models import DecoderModel
from export.readers.configured_backbone import PUBLISHED, ConfiguredBackbone, configured_backbone, whole_number
from export.readers.configured_decoder import (
    Configuration,
    ConfiguredDecoder,
    DecodedVectors,
    configured_decoder,
)
from export.readers.families import BACKBONE_FAMILIES
from export.readers.hub import ANYTHING, FileRequest, find_local, resolve_files
from export.readers.memory_hdf5 import read_memory_bank
from export.readers.talk2dino import read_talk2dino
from export.text_spaces import TextSpace

CONFIG_FILE = "config.yaml"

_BANKS = {
    "coco": "coco_captions",
    "msmarco": "ms_marco_queries_a",
    "blip": "cc3m_blip_captions",
    "vg": "vg_captions",
    "vg-test": "vg_dense_captions_test",
}
"""The name of a bank in its file and its datasets, by `projection_type`."""

_SUPPORTED = {
    "prefix_size",
    "support_memory_size",
    "dino_model",
    "dino_weights",
    "normalize",
    "projection_type",
    "resize_dim",
    "crop_dim",
    "hf_repo_id",
    "tokenizer",
    "talk2dino_attn_type",
    "talk2dino_weights",
    "text_space",
    PUBLISHED,
}
_WITHOUT_EFFECT = {"linear_talk2dino", "use_talk2dino_project", "clip_model_name"}
"""Keys that are false here, or matter only to those who make a bank or look for its file."""
_OTHER_SYSTEMS = (
    "linear_talk2dino",
    "talk2dino_config",
    "use_open_clip",
    "online_texts",
    "viecap",
    "clipcap",
    "ifcap",
    "diffusion_bridge",
    "aggregation",
    "regionclip",
    "denseclip",
    "alphaclip",
    "siglip2",
    "proxyclip",
    "invite",
)
"""Prefixes of keys that make it another system than is built here, if they are set and no family knows them."""
_GPT2 = "gpt2"
"""The language model of DeCap's decoders, as configurations call it."""
_TEXT_SPACE_NAME = re.compile("[A-Za-z0-9][A-Za-z0-9._-]*")
"""The names of spaces that the manifest accepts."""


@dataclass(frozen=True)
class Origin:
    """Where a configuration and its files come from.

    Attributes:
        source: the name that the user gave the checkpoint.
        folders: folders to look for files in.
        repository: the hub's repository for what no folder has.
    """

    source: str
    folders: tuple[Path, ...]
    repository: str | None = None


def read_patchioner(config_file: Path, origin: Origin) -> Checkpoint:
    """Read the checkpoint that a configuration describes.

    `dino_weights` (the backbone's file, or a list of its files), `tokenizer` (a tokenizer.json; without it CLIP's
    vocabulary, or GPT-2's for decoders with prompts), `text_space` (the identity of the space that decoder and bank
    share) and `published` (whether a published row that rests on a fault is to be reproduced) are this project's own
    keys. Without `dino_weights` the backbone is looked for by its published names.

    Raises:
        CheckpointError: files are missing or do not fit, or a setting asks for what is not supported.
    """
    settings = _read_settings(config_file)
    configured = configured_backbone(settings, str(config_file))
    folders = (config_file.parent, *origin.folders)
    repository = origin.repository or settings.get("hf_repo_id")
    asked_for = configured_decoder(Configuration(settings, config_file, folders, origin.source, repository))
    notes = _check_settings(settings, configured, asked_for, config_file)
    size = configured.image_size
    resize = whole_number(settings, "resize_dim", size, config_file)
    memory_size = whole_number(settings, "support_memory_size", 0, config_file, at_least=0)
    has_bank = asked_for.uses_bank and memory_size > 0
    requests = [asked_for.requests(), configured.requests(repository)]
    requests += [_bank_requests(configured, memory_size, repository, config_file)] if has_bank else []
    found = iter(resolve_files(list(chain(*requests)), (*folders, _torch_hub_folder()), origin.source))
    decoder_files, backbone_files, *banks = ([next(found) for _ in part] for part in requests)
    backbone = configured.read(backbone_files)
    width, space = backbone.output_dim, _text_space(configured, folders, config_file)
    rules = replace(configured.space_called(space, width), width=width)
    parts = asked_for.read(decoder_files, DecodedVectors(width, space, rules))
    _check_width(parts.decoder, decoder_files[0], width, _prefix_size(settings, asked_for, width, config_file))
    return Checkpoint(
        source=origin.source,
        backbone_name=configured.name,
        text_space=space,
        backbone=backbone,
        decoder=parts.decoder,
        memory=_read_bank(banks[0][0], configured, rules) if has_bank else parts.memory,
        tokenizer=parts.tokenizer,
        end_tokens=parts.end_tokens,
        prompts=parts.prompts,
        resize_short_side=None if resize == size else resize,
        notes=(*notes, *backbone.notes, *parts.notes),
    )


def _read_settings(path: Path) -> dict[str, Any]:
    try:
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise CheckpointError(f"{path}: not a YAML file: {' '.join(str(error).split())}") from None
    if not isinstance(settings, dict):
        raise CheckpointError(f"{path}: expected a Patch-ioner configuration (keys and values)")
    return settings


def _check_settings(
    settings: dict[str, Any], configured: ConfiguredBackbone, asked_for: ConfiguredDecoder, path: Path
) -> tuple[str, ...]:
    """Refuse settings of other systems; return notes on settings that have no effect here."""
    known = {key for family in BACKBONE_FAMILIES for key in family.settings} | asked_for.keys
    for key, value in settings.items():
        if value and key not in known and str(key).startswith(_OTHER_SYSTEMS):
            families = ", ".join(family.name for family in BACKBONE_FAMILIES)
            raise CheckpointError(
                f"{path}: {key}: not supported; expected a decoder of DeCap, ViECap, MeaCap or ClipCap with a backbone "
                f"of the families {families}"
            )
    decoder = settings.get("decoder_config") or {}
    language_model = decoder.get("decoder_family", _GPT2) if isinstance(decoder, dict) else decoder
    if language_model != _GPT2:
        raise CheckpointError(f"{path}: decoder_config: decoder_family: expected {_GPT2}, got {language_model!r}")
    for key in ("normalize", PUBLISHED):
        if not isinstance(settings.get(key, False), bool):
            raise CheckpointError(f"{path}: {key}: expected true or false, got {settings[key]!r}")
    own = configured.family.settings if configured.family else frozenset()
    supported = _SUPPORTED | _WITHOUT_EFFECT | own | asked_for.keys
    ignored = [str(key) for key, value in settings.items() if value and key not in supported]
    return (f"settings without effect: {', '.join(ignored)}",) if ignored else ()


def _check_width(decoder: DecoderModel, decoder_file: Path, width: int, prefix_size: int) -> None:
    if not decoder.prefix_width == width == prefix_size:
        raise CheckpointError(
            f"{decoder_file}: expected a decoder for vectors of width {width}, the backbone's, and {prefix_size}, the "
            f"configuration's prefix_size, got {decoder.prefix_width}"
        )


def _text_space(configured: ConfiguredBackbone, folders: Sequence[Path], path: Path) -> str:
    """Return the space that decoder and bank share: as named, that of the Talk2DINO file, or of the published files.

    Raises:
        CheckpointError: it is named by something that is no name.
    """
    settings = configured.settings
    if settings.get("text_space"):
        name = str(settings["text_space"])
        if not _TEXT_SPACE_NAME.fullmatch(name):
            raise CheckpointError(
                f"{path}: text_space: expected letters, digits, dots, dashes and underscores, such as "
                f"t2d-dinov2-b-2024, got {name!r}"
            )
        return name
    weights = settings.get("talk2dino_weights")
    projection = find_local((str(weights),), folders) if weights else None
    if projection is not None:
        return read_talk2dino(projection).text_space
    return configured.text_space or f"t2d-{re.sub('[^A-Za-z0-9._-]', '-', configured.name)}"


def _read_bank(path: Path, configured: ConfiguredBackbone, rules: TextSpace) -> MemorySource:
    """Open a bank by the rules of its space and of ``normalize``."""
    return read_memory_bank(path, rules, bool(configured.settings.get("normalize", True)))


def _prefix_size(settings: dict[str, Any], asked_for: ConfiguredDecoder, width: int, path: Path) -> int:
    """Return the width of the vectors that a configuration gives its decoder; of inverted ones, before that."""
    return width if "talk2dino_config" in asked_for.keys else whole_number(settings, "prefix_size", width, path)


def _bank_requests(
    configured: ConfiguredBackbone, memory_size: int, repository: str | None, path: Path
) -> list[FileRequest]:
    """Return the request for the bank's file, which is named itself or by its captions.

    See published-system.md, section 5.
    """
    named = str(configured.settings.get("projection_type") or "coco")
    what = "the memory bank; patchcaption build-memory-bank makes one of captions"
    if named.endswith((".h5", ".hdf5")):
        return [FileRequest(what, (named,), ((repository, Path(named).name),) if repository else ())]
    captions = _captions_of(named, path)
    names = [bank.replace("{captions}", captions).replace("{rows}", str(memory_size)) for bank in configured.banks]
    only = [f"{ANYTHING}.h5"] if any(ANYTHING in name for name in names) else []  # the one bank of a repository
    sources = tuple((repository, name) for name in (*names, *only)) if repository else ()
    return [FileRequest(what, tuple(names), sources)]


def _captions_of(projection_type: str, path: Path) -> str:
    """Return the name of a bank's captions; a path is that of their file on the machine where the bank was made."""
    if projection_type in _BANKS:
        return _BANKS[projection_type]
    if projection_type in _BANKS.values():
        return projection_type
    name = Path(projection_type).name.lower()
    by_part = {"karpathy": "coco", "coco": "coco", "vg": "vg", "marco": "msmarco"}
    kinds = [kind for part, kind in by_part.items() if part in name]
    if not kinds and Path(name).suffix:  # the published system calls all others so too
        return _BANKS["coco"]
    if not kinds:
        raise CheckpointError(
            f"{path}: projection_type: expected {', '.join(_BANKS)} or a bank (.h5), got {projection_type!r}"
        )
    return _BANKS[kinds[0]]


def _torch_hub_folder() -> Path:
    """Return the folder of torch.hub's downloads, among which DINOv2's files may be."""
    return Path(torch.hub.get_dir()) / "checkpoints"
