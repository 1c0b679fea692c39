"""The configuration that a trained decoder is built with, behind a backbone (published-system.md, section 7)."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from export.checkpoint import CheckpointError, MemorySource

_BACKBONE_KEYS = ("dino_model", "dino_weights", "resize_dim", "crop_dim", "talk2dino_attn_type", "published")
"""The keys of another configuration that say which backbone it is."""


def backbone_settings(backbone: str) -> dict[str, Any]:
    """Return the settings of a backbone: the name of an architecture, or the path of a configuration that has it.

    Raises:
        CheckpointError: the configuration cannot be read.
    """
    path = Path(backbone)
    if path.suffix not in (".yaml", ".yml"):
        return {"dino_model": backbone}
    try:
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise CheckpointError(f"--backbone {backbone}: cannot be read: {reason}") from None
    if not isinstance(settings, dict):
        raise CheckpointError(f"--backbone {backbone}: expected a Patch-ioner configuration (keys and values)")
    kept = {key: settings[key] for key in _BACKBONE_KEYS if key in settings}
    if "dino_weights" in kept:
        kept["dino_weights"] = _found(kept["dino_weights"], path.parent)
    return kept


def configuration(
    backbone: Mapping[str, Any], decoder: Path, bank: MemorySource, bank_file: Path | None, tokenizer: Path | None
) -> bytes:
    """Return the configuration of a decoder that lies beside it.

    Args:
        backbone: its settings.
        bank: what the decoder was trained on.
        bank_file: the memory bank that it wants; None for CapDec.
        tokenizer: its tokenizer.json; None for CLIP's vocabulary.
    """
    settings = {
        **backbone,
        "decap_weights": decoder.name,
        "prefix_size": bank.width,
        "text_space": bank.text_space,
        "normalize": bank.normalize if bank_file else False,
        "support_memory_size": int(bank_file is not None),
    }
    if bank_file is not None:
        settings["projection_type"] = _beside(bank_file, decoder)
    if tokenizer is not None:
        settings["tokenizer"] = _beside(tokenizer, decoder)
    return yaml.safe_dump(settings, sort_keys=False).encode()


def _found(names: Any, folder: Path) -> Any:
    """Return the names of files with the folder that they were found beside."""
    if isinstance(names, list):
        return [_found(name, folder) for name in names]
    path = folder / str(names)
    return str(path.absolute()) if path.exists() else names


def _beside(file: Path, decoder: Path) -> str:
    """Return how a file is named in a configuration beside the decoder."""
    return os.path.relpath(file.absolute(), decoder.absolute().parent)
