"""Reads Patch-ioner configurations (YAML) and the files they name (published-system.md, section 7)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from tokenizers import Tokenizer

from export.checkpoint import Checkpoint, CheckpointError
from export.models import BackboneModel, DecoderModel
from export.readers.backbone_family import Architecture, BackboneRequest
from export.readers.clip_bpe import MERGES_FILE, read_clip_bpe, read_tokenizer
from export.readers.families import (
    DECODER_READERS,
    architecture_names,
    find_architecture,
    recognize_family,
)
from export.readers.hub import FileRequest, find_local, resolve_files
from export.readers.memory_hdf5 import read_memory_bank
from export.readers.talk2dino import read_talk2dino
from export.readers.weight_files import read_weights
from export.text_spaces import text_space

CONFIG_FILE = "config.yaml"

_DEFAULT_SIZE = 518
_BANKS = {
    "coco": "coco_captions",
    "msmarco": "ms_marco_queries_a",
    "blip": "cc3m_blip_captions",
    "vg": "vg_captions",
    "vg-test": "vg_dense_captions_test",
}
"""The name of a bank in its file and its datasets, by `projection_type`."""

_SUPPORTED = {
    "decap_weights",
    "prefix_size",
    "support_memory_size",
    "dino_model",
    "dino_weights",
    "normalize",
    "kkv_attention",
    "attention_type",
    "projection_type",
    "resize_dim",
    "crop_dim",
    "hf_repo_id",
    "tokenizer",
    "talk2dino_attn_type",
    "talk2dino_weights",
    "text_space",
}
_WITHOUT_EFFECT = {"linear_talk2dino", "use_talk2dino_project", "clip_model_name"}
"""Keys that are false here, or matter only to those who make a bank."""
_OTHER_SYSTEMS = (
    "linear_talk2dino",
    "talk2dino_config",
    "use_open_clip",
    "online_texts",
    "viecap",
    "meacap",
    "clipcap",
    "regionclip",
    "denseclip",
    "alphaclip",
    "proxyclip",
    "invite",
)
"""Prefixes of keys that, if set, make it another system than the one that is built here."""
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

    `dino_weights` (the backbone's file), `tokenizer` (a tokenizer.json; without it CLIP's vocabulary) and `text_space`
    (the identity of the space that decoder and bank share) are this project's own keys. Without `dino_weights` the
    backbone is looked for by its published name.

    Raises:
        CheckpointError: files are missing or do not fit, or a setting asks for what is not supported.
    """
    settings = _read_settings(config_file)
    notes = _check_settings(settings, config_file)
    folders = (config_file.parent, *origin.folders)
    repository = origin.repository or settings.get("hf_repo_id")
    architecture = _architecture(settings, config_file)
    requests = [_decoder_request(settings, repository, config_file), _backbone_request(settings, architecture)]
    memory_size = _whole_number(settings, "support_memory_size", 0, config_file, at_least=0)
    if memory_size:
        requests.append(_bank_request(settings, memory_size, repository, config_file))
    decoder_file, backbone_file, *bank_file = resolve_files(requests, (*folders, _torch_hub_folder()), origin.source)
    size = _whole_number(settings, "crop_dim", _DEFAULT_SIZE, config_file)
    resize = _whole_number(settings, "resize_dim", size, config_file)
    tokenizer = _tokenizer(settings, folders, origin.source)
    backbone = _read_backbone(backbone_file, size, settings)
    width = backbone.output_dim
    decoder = DECODER_READERS["decap"](decoder_file, tokenizer.get_vocab_size())
    _check_width(decoder, decoder_file, width, _whole_number(settings, "prefix_size", width, config_file))
    name = _text_space(settings, folders, config_file)
    space, normalize = text_space(name, width), bool(settings.get("normalize", True))
    return Checkpoint(
        source=origin.source,
        backbone_name=str(settings["dino_model"]),
        text_space=name,
        backbone=backbone,
        decoder=decoder,
        memory=read_memory_bank(bank_file[0], space, normalize) if bank_file else None,
        tokenizer=tokenizer,
        resize_short_side=None if resize == size else resize,
        notes=notes,
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


def _check_settings(settings: dict[str, Any], path: Path) -> tuple[str, ...]:
    """Refuse settings of other systems; return notes on settings that have no effect here."""
    for key, value in settings.items():
        if value and str(key).startswith(_OTHER_SYSTEMS):
            raise CheckpointError(f"{path}: {key}: not supported; expected a DINOv2 backbone with a DeCap decoder")
    ignored = [str(key) for key, value in settings.items() if value and key not in _SUPPORTED | _WITHOUT_EFFECT]
    return (f"settings without effect: {', '.join(ignored)}",) if ignored else ()


def _architecture(settings: dict[str, Any], path: Path) -> Architecture | None:
    """Return the published backbone that is named; None for another one, whose weights are named too."""
    name = _setting(settings, "dino_model", path)
    found = find_architecture(name) if isinstance(name, str) else None
    if found is None and "dino_weights" not in settings:
        raise CheckpointError(f"{path}: dino_model: expected one of {', '.join(architecture_names())}, got {name!r}")
    return None if found is None else found[1]


def _read_backbone(path: Path, size: int, settings: dict[str, Any]) -> BackboneModel:
    state, name = read_weights(path), str(settings["dino_model"])
    found = find_architecture(name)
    family = recognize_family(state, str(path)) if found is None else found[0]
    options = family.read_options(family.options_of(settings), str(path))
    return family.from_state(state, BackboneRequest(size, str(path), found[1] if found else None, options))


def _check_width(decoder: DecoderModel, decoder_file: Path, width: int, prefix_size: int) -> None:
    if not decoder.prefix_width == width == prefix_size:
        raise CheckpointError(
            f"{decoder_file}: expected a decoder for vectors of width {width}, the backbone's, and {prefix_size}, the "
            f"configuration's prefix_size, got {decoder.prefix_width}"
        )


def _text_space(settings: dict[str, Any], folders: Sequence[Path], path: Path) -> str:
    """Return the space that decoder and bank share: as named, that of the Talk2DINO file, or of the published files.

    Raises:
        CheckpointError: it is named by something that is no name.
    """
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
    model = str(settings["dino_model"])
    found = find_architecture(model)
    published = found[1].text_space if found else None
    return published or f"t2d-{re.sub('[^A-Za-z0-9._-]', '-', model)}"


def _decoder_request(settings: dict[str, Any], repository: str | None, path: Path) -> FileRequest:
    name = str(_setting(settings, "decap_weights", path))
    return FileRequest("decap_weights, the decoder", (name,), ((repository, Path(name).name),) if repository else ())


def _backbone_request(settings: dict[str, Any], architecture: Architecture | None) -> FileRequest:
    what = "dino_weights, the backbone"
    if "dino_weights" in settings:
        return FileRequest(what, (str(settings["dino_weights"]),))
    assert architecture is not None  # one of the two is there
    file = architecture.files[0]
    folder = str(file.repository).split("/")[1]
    names = (file.name, folder, f"{folder}.safetensors")
    return FileRequest(f"{settings['dino_model']}, the backbone", names, ((str(file.repository), "model.safetensors"),))


def _bank_request(settings: dict[str, Any], memory_size: int, repository: str | None, path: Path) -> FileRequest:
    """Return the request for the bank's file, which is named itself or by its captions.

    See published-system.md, section 5.
    """
    named = str(settings.get("projection_type") or "coco")
    what = "the memory bank; patchcaption build-memory-bank makes one of captions"
    if named.endswith((".h5", ".hdf5")):
        return FileRequest(what, (named,), ((repository, Path(named).name),) if repository else ())
    attention = settings.get("talk2dino_attn_type", "qkv")
    middle = "" if attention == "qkv" else f"_{attention}"
    name = f"{_captions_of(named, path)}_text_embeddings{middle}-B16-ViT-B.16-{memory_size}.h5"
    return FileRequest(what, (name,), ((repository, name),) if repository else ())


def _captions_of(projection_type: str, path: Path) -> str:
    """Return the name of a bank's captions; a path is that of their file on the machine where the bank was made."""
    if projection_type in _BANKS:
        return _BANKS[projection_type]
    if projection_type in _BANKS.values():
        return projection_type
    name = Path(projection_type).name.lower()
    by_part = {"karpathy": "coco", "coco": "coco", "vg": "vg", "marco": "msmarco"}
    kinds = [kind for part, kind in by_part.items() if part in name]
    if not kinds:
        raise CheckpointError(
            f"{path}: projection_type: expected {', '.join(_BANKS)} or a bank (.h5), got {projection_type!r}"
        )
    return _BANKS[kinds[0]]


def _tokenizer(settings: dict[str, Any], folders: Sequence[Path], source: str) -> Tokenizer:
    if "tokenizer" not in settings:
        return read_clip_bpe(find_local((MERGES_FILE,), folders))
    (path,) = resolve_files([FileRequest("tokenizer", (str(settings["tokenizer"]),))], folders, source)
    return read_tokenizer(path)


def _torch_hub_folder() -> Path:
    """Return the folder of torch.hub's downloads, among which DINOv2's files may be."""
    return Path(torch.hub.get_dir()) / "checkpoints"


def _setting(settings: dict[str, Any], key: str, path: Path) -> Any:
    if key not in settings:
        raise CheckpointError(f"{path}: {key} is missing")
    return settings[key]


def _whole_number(settings: dict[str, Any], key: str, default: int, path: Path, at_least: int = 1) -> int:
    value = settings.get(key, default)
    if not isinstance(value, int) or value < at_least:
        raise CheckpointError(f"{path}: {key}: expected a whole number of at least {at_least}, got {value!r}")
    return value
