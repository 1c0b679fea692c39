"""Where the runtime keeps what it has found out about this machine."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """$XDG_CACHE_HOME/patchcaption, or ~/.cache/patchcaption; it may not be there yet.

    Raises:
        RuntimeError: the user has no home.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (cache if cache.is_absolute() else Path.home() / ".cache") / "patchcaption"
