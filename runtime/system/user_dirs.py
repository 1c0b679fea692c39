"""The folders of the user in which the runtime keeps measurements and decisions."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """Return the folder for what can be measured again: $XDG_CACHE_HOME/patchcaption, or ~/.cache/patchcaption.

    It may not exist yet.

    Raises:
        RuntimeError: the user has no home folder.
    """
    return _folder("XDG_CACHE_HOME", ".cache")


def cache_file(*names: str) -> Path | None:
    """Return a file in the cache folder, by the names of its folders and its own; None where the user has no home."""
    try:
        return cache_folder().joinpath(*names)
    except RuntimeError:
        return None


def data_folder() -> Path:
    """Return the folder for the user's decisions: $XDG_DATA_HOME/patchcaption, or ~/.local/share/patchcaption.

    It may not exist yet.

    Raises:
        RuntimeError: the user has no home folder.
    """
    return _folder("XDG_DATA_HOME", ".local/share")


def _folder(variable: str, below_home: str) -> Path:
    base = Path(os.environ.get(variable, ""))
    return (base if base.is_absolute() else Path.home() / below_home) / "patchcaption"
