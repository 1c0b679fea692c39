"""The folders of the user in which the runtime keeps measurements, decisions and what was compiled.

Some of that is executed when it is read again. So it is used only where nobody else can have written it: `is_private`.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

_NAME = "patchcaption"
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


def cache_folder() -> Path:
    """Return the folder for what can be measured again: $XDG_CACHE_HOME/patchcaption, or ~/.cache/patchcaption.

    It may not exist yet.

    Raises:
        RuntimeError: the user has no home folder.
    """
    return _folder("XDG_CACHE_HOME", ".cache")


def cache_file(*names: str) -> Path | None:
    """Return a file or folder in the cache folder, by the names of its folders and its own.

    None where the user has no home, and where somebody else can have written what is there.
    """
    try:
        file = cache_folder().joinpath(*names)
        return file if is_private(file, cache_folder()) else None
    except (OSError, RuntimeError):
        return None


def private_cache_folder(name: str) -> Path | None:
    """Return a folder in the cache folder, made if need be, for a library that executes what it finds there by name.

    None where it cannot be made, and where somebody else can have written what is in it.
    """
    folder = cache_file(name)
    if folder is None:
        return None
    try:
        make_private(folder)
        owners = {one.lstat().st_uid for one in folder.iterdir()}
    except OSError:
        return None
    return folder if owners <= {os.geteuid(), 0} else None


def data_folder() -> Path:
    """Return the folder for the user's decisions: $XDG_DATA_HOME/patchcaption, or ~/.local/share/patchcaption.

    It may not exist yet.

    Raises:
        RuntimeError: the user has no home folder.
    """
    return _folder("XDG_DATA_HOME", ".local/share")


def make_private(folder: Path) -> None:
    """Make a folder, and those that it is in, as the XDG specification asks: only their owner can enter them.

    Raises:
        OSError: it cannot be made.
    """
    for one in reversed([folder, *folder.parents]):
        if not one.is_dir():
            one.mkdir(mode=0o700, exist_ok=True)


def is_private(path: Path, base: Path) -> bool:
    """Return whether nobody but this user and root can have made or changed ``path``.

    What does not exist yet is as private as the folders that it would be in.

    Args:
        path: a file or folder in ``base``.
        base: `cache_folder` or `data_folder`.

    Raises:
        OSError: it cannot be found out.
    """
    own = [one for one in (path, *path.parents) if one.is_relative_to(base)]
    around = {*base.parents, *base.resolve().parents}
    return all(map(_is_of_this_user, own)) and not any(map(_is_open_to_all, around))


def _is_of_this_user(path: Path) -> bool:
    """Return whether a path, and what it leads to as a link, is this user's or root's, and only theirs to write."""
    try:
        found = (path.lstat(), path.stat())
    except FileNotFoundError:
        return not path.is_symlink()
    return all(
        one.st_uid in (os.geteuid(), 0) and (stat.S_ISLNK(one.st_mode) or not one.st_mode & _OTHERS_WRITE)
        for one in found
    )


def _is_open_to_all(folder: Path) -> bool:
    """Return whether everybody can exchange what is in a folder; in /tmp, with the sticky bit, only its owner can."""
    try:
        mode = folder.stat().st_mode
    except FileNotFoundError:
        return False
    return bool(mode & stat.S_IWOTH and not mode & stat.S_ISVTX)


def _folder(variable: str, below_home: str) -> Path:
    base = Path(os.environ.get(variable, ""))
    if not base.is_absolute():
        base = Path.home() / below_home
    if not base.is_absolute():  # or a folder that the program happens to be in would say what may be executed
        raise RuntimeError(f"the home folder {str(Path.home())!r} is no absolute path")
    return base / _NAME
