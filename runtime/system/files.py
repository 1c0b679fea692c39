"""Files that are written whole or not at all."""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from runtime.system.user_dirs import make_private

_MAX_LINKS = 40
"""As many symbolic links in a row as Linux follows."""
_MAX_NAME_BYTES = 255


@contextmanager
def write_atomically(path: Path) -> Iterator[Path]:
    """Yield an empty file beside ``path`` to write to; it replaces ``path`` if the block ends without an exception.

    Otherwise, and if the process is killed, ``path`` stays as it was. The file keeps the suffix of ``path``, by which
    libraries choose a format. Of a symbolic link, what it leads to is replaced.

    Raises:
        OSError: the folder does not exist, or the file cannot be written.
    """
    path = follow_links(path)
    with temporary_beside(path) as part:
        yield part
        move_into_place(part, path)


def write_cache(path: Path, data: bytes) -> bool:
    """Keep what only saves time, and make its folder; return False where that cannot be written."""
    try:
        make_private(path.parent)
        with write_atomically(path) as part:
            part.chmod(0o600)
            part.write_bytes(data)
    except OSError:
        return False
    return True


@contextmanager
def temporary_beside(path: Path) -> Iterator[Path]:
    """Yield a new, empty file in the folder of ``path``; it is removed at the end unless it was moved.

    Raises:
        OSError: it cannot be made.
    """
    part, descriptor = open_part(path)
    os.close(descriptor)
    try:
        yield part
    finally:
        part.unlink(missing_ok=True)


def open_part(path: Path) -> tuple[Path, int]:
    """Make an empty file in the folder of ``path``, under a name that tells what it is a part of; open it.

    Nobody can guess the name, and no file or link that is there is taken for it.

    Returns:
        its path, and a descriptor to read and write it.

    Raises:
        OSError: it cannot be made.
    """
    part = part_name(path, secrets.token_hex(8))
    # Not tempfile, whose files only their owner may read, whatever the umask.
    return part, os.open(part, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o666)


def part_name(path: Path, token: str) -> Path:
    """Return the path of a part of ``path``: NAME.part-TOKEN.SUFFIX."""
    ending = f".part-{token}{path.suffix}"
    stem = os.fsencode(path.stem)[: _MAX_NAME_BYTES - len(os.fsencode(ending))]
    return path.with_name(os.fsdecode(stem) + ending)


def move_into_place(part: Path, path: Path) -> None:
    """Rename ``part`` to ``path``, in the same folder, once its content is on the disk.

    It gets the permissions of what it replaces.

    Raises:
        OSError: the disk is full, or ``path`` is a folder.
    """
    with part.open("rb") as file:
        os.fsync(file.fileno())
        with suppress(FileNotFoundError):
            os.fchmod(file.fileno(), stat.S_IMODE(path.stat().st_mode))
    part.replace(path)


def lock(descriptor: int) -> bool:
    """Lock an open file until it is closed, at the latest by the end of the process, however that ends.

    Returns:
        False if another process has locked it, perhaps in another container.

    Raises:
        OSError: the file system has no locks.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def is_folder(path: str | os.PathLike[str]) -> bool:
    """Return whether a folder is there; nothing is at a name that is too long for files, which pathlib raises of."""
    return _answers(Path.is_dir, path)


def is_file(path: str | os.PathLike[str]) -> bool:
    """Return whether a regular file is there, as `is_folder` does."""
    return _answers(Path.is_file, path)


def is_there(path: str | os.PathLike[str]) -> bool:
    """Return whether anything is there, as `is_folder` does."""
    return _answers(Path.exists, path)


def _answers(question: Callable[[Path], bool], path: str | os.PathLike[str]) -> bool:
    try:
        return question(Path(path))
    except (OSError, ValueError):
        return False


def follow_links(path: Path) -> Path:
    """Return where a symbolic link leads, which need not exist; ``path`` itself if it is none.

    Raises:
        OSError: no file can have this name; the links lead in a circle; or one is another user's, in a folder like /tmp
            that everybody can write to (what the kernel refuses to open may not be renamed over either).
    """
    for _ in range(_MAX_LINKS):
        try:
            status = path.lstat()
        except FileNotFoundError:
            return path
        except ValueError as error:  # a name with a zero in it, or that no file system encodes
            raise OSError(errno.EINVAL, str(error)) from None
        if not stat.S_ISLNK(status.st_mode):
            return path
        folder = path.parent.stat()
        is_shared = folder.st_mode & stat.S_ISVTX and folder.st_mode & stat.S_IWOTH
        if is_shared and status.st_uid not in (os.geteuid(), folder.st_uid):
            raise PermissionError(errno.EACCES, "it is a link of another user in a folder that everybody can write to")
        path = path.parent / path.readlink()
    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
