"""Files that are written whole or not at all."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from runtime.errors import PatchcaptionError


@contextmanager
def write_atomically(path: Path) -> Iterator[Path]:
    """Yield an empty file beside ``path`` to write to; it replaces ``path`` if the block ends without an exception.

    Otherwise, and if the process is killed, ``path`` stays as it was. The file keeps the suffix of ``path``, by which
    libraries choose a format.

    Raises:
        OSError: the folder does not exist, or the file cannot be written.
    """
    with temporary_beside(path) as part:
        yield part
        move_into_place(part, path)


@contextmanager
def write_output(path: Path) -> Iterator[Path]:
    """Write a file that the user asked for by `write_atomically`; a failure is one line that names it.

    Raises:
        PatchcaptionError: the file cannot be written.
    """
    try:
        with write_atomically(path) as part:
            yield part
    except OSError as error:
        raise PatchcaptionError(f"{path}: cannot be written: {error.strerror or error}") from None


def write_cache(path: Path, data: bytes) -> bool:
    """Keep what only saves time, and make its folder; return False where that cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with write_atomically(path) as part:
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
    part = path.with_name(f".{path.stem}.{secrets.token_hex(8)}{path.suffix}")
    # Not tempfile, whose files only their owner may read, whatever the umask. O_EXCL follows no link that is there.
    os.close(os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    try:
        yield part
    finally:
        part.unlink(missing_ok=True)


def move_into_place(part: Path, path: Path) -> None:
    """Rename ``part`` to ``path``, in the same folder, once its content is on the disk.

    Raises:
        OSError: the disk is full, or ``path`` is a folder.
    """
    with part.open("rb") as file:
        os.fsync(file.fileno())
    part.replace(path)
