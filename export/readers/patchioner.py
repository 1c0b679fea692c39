"""A Patch-ioner configuration (YAML) and the files it names (SPEC section 7)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from tokenizers import Tokenizer

from export.checkpoint import Checkpoint, CheckpointError
from export.readers.clip_bpe import read_clip_bpe
from export.readers.decap import read_decap
from export.readers.dinov2 import read_dinov2
from export.readers.memory_bank import read_memory_bank


def read_patchioner(config_file: Path, source: str, size: int | None = None) -> Checkpoint:
    """The checkpoint that a configuration describes; the files it names are looked up beside it.

    `dino_weights` (the backbone's file) and `tokenizer` (a tokenizer.json; without it CLIP's vocabulary) are this
    project's own keys.

    Args:
        config_file: the YAML file.
        source: what the user called the checkpoint.
        size: side of the backbone's input in pixels; None takes the configuration's `crop_dim`.
    """
    settings = _read_settings(config_file)

    def file(key: str) -> Path:
        return config_file.parent / str(_setting(settings, key, config_file))

    tokenizer = _read_tokenizer(file("tokenizer")) if "tokenizer" in settings else read_clip_bpe()
    if size is None:
        size = _setting(settings, "crop_dim", config_file)
        if not isinstance(size, int):
            raise CheckpointError(f"{config_file}: crop_dim: expected a whole number, got {size!r}")
    backbone = read_dinov2(file("dino_weights"), size)
    decoder = read_decap(file("decap_weights"), tokenizer.get_vocab_size())
    width = backbone.config.width
    if decoder.config.prefix_width != width:
        raise CheckpointError(
            f"{file('decap_weights')}: expected a decoder for vectors of width {width}, the backbone's, "
            f"got {decoder.config.prefix_width}"
        )
    memory = None
    if settings.get("support_memory_size", 0):
        memory = read_memory_bank(file("projection_type"), width, bool(settings.get("normalize", True)))
    return Checkpoint(
        source=source,
        backbone_name=str(_setting(settings, "dino_model", config_file)),
        backbone=backbone,
        decoder=decoder,
        memory=memory,
        tokenizer=tokenizer,
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


def _setting(settings: dict[str, Any], key: str, path: Path) -> Any:
    if key not in settings:
        raise CheckpointError(f"{path}: {key} is missing")
    return settings[key]


def _read_tokenizer(path: Path) -> Tokenizer:
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exception
        raise CheckpointError(f"{path}: not a tokenizer: {error}") from None
