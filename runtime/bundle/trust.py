"""Which TensorRT plans may be loaded. A plan is a program, unlike all else in a bundle: graphs, numbers and text.

Those may be loaded that this user has built on this machine, or has said to trust; both leave an empty file named after
the plan's sha256 in the user's data folder. It counts only where nobody else can have put it.
"""

from __future__ import annotations

from pathlib import Path

from runtime.errors import BackendError
from runtime.system.user_dirs import data_folder, is_private, make_private


def trust(sha256: str) -> None:
    """Let a plan be loaded from now on.

    Raises:
        BackendError: it cannot be remembered, or not where nobody else can write.
    """
    try:
        mark = _mark(sha256)
        make_private(mark.parent)
        is_safe = is_private(mark, data_folder())
        if is_safe:
            mark.touch(mode=0o600)
    except (OSError, RuntimeError) as error:  # RuntimeError: the user has no home
        raise BackendError(
            f"that a plan is trusted cannot be remembered: {error}; set XDG_DATA_HOME to a folder"
        ) from None
    if not is_safe:
        raise BackendError(
            f"that a plan is trusted cannot be remembered: others can write to {mark.parent}, or own a part of it; "
            f"chmod -R go-w {data_folder()}, or set XDG_DATA_HOME to a folder of your own"
        )


def is_trusted(sha256: str) -> bool:
    """Return whether this user trusts the file with that hash."""
    try:
        mark = _mark(sha256)
        return mark.is_file() and is_private(mark, data_folder())
    except (OSError, RuntimeError):
        return False


def check_trusted(plan: Path, sha256: str) -> None:
    """Raise if a plan may not be loaded."""
    if not is_trusted(sha256):
        raise BackendError(
            f"{plan}: a TensorRT plan is a program, and you have not built this one on this machine; build it: "
            f"patchcaption build-plans {plan.parent}; or, if you trust who did: patchcaption trust {plan.parent}"
        )


def _mark(sha256: str) -> Path:
    return data_folder() / "trusted-plans" / sha256
