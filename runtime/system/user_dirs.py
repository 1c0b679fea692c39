"""Where the runtime keeps what it has found out about this machine, and what its user has decided."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """$XDG_CACHE_HOME/patchcaption, or ~/.cache/patchcaption: what can be found out again. It may not be there yet.

    Raises:
        RuntimeError: the user has no home.
    """
    return _folder("XDG_CACHE_HOME", ".cache")


def data_folder() -> Path:
    """$XDG_DATA_HOME/patchcaption, or ~/.local/share/patchcaption: what can not.

    Raises:
        RuntimeError: the user has no home.
    """
    return _folder("XDG_DATA_HOME", ".local/share")


def _folder(variable: str, below_home: str) -> Path:
    named = Path(os.environ.get(variable, ""))
    return (named if named.is_absolute() else Path.home() / below_home) / "patchcaption"
