"""A file of an opened bundle, held: what is read of it later is what was there when the bundle was opened.

A bundle is exchanged by renaming, which leaves files that are held as they are. One that is written to in place, as
`cp` and `rsync --inplace` do, is refused from then on. Nothing is mapped: a mapped file that another process shortens
ends this process (SIGBUS), and one that is overwritten changes answers without a word.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from runtime.errors import BundleError
from runtime.system.process_bound import ProcessBound

_PIECE_BYTES = 2**26
"""What one thread reads at a time; a single call reads less than 2 GiB."""
_READING_THREADS = 4
_HASHED_BYTES = 2**20


class _State(NamedTuple):
    """What tells that a file was exchanged, or written to. Not ctime, which a rename or another owner changes too."""

    device: int
    inode: int
    size: int
    mtime_ns: int

    @classmethod
    def of(cls, status: os.stat_result) -> _State:
        return cls(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)


class HeldFile(ProcessBound):
    """A regular file, open for reading until nothing refers to this object.

    Args:
        path: the file. A link is not followed: it could lead anywhere.
        folder_fd: an open folder that the last part of ``path`` is looked up in; None to look up the whole path.
        max_bytes: the most that the file may have.

    Attributes:
        path: where it was when it was opened.
        size: its bytes.

    Raises:
        BundleError: it is missing, no regular file, too large, or cannot be read.
    """

    def __init__(self, path: Path, folder_fd: int | None = None, max_bytes: int | None = None) -> None:
        self.path = path
        self._fd = _open_regular(path, folder_fd)
        weakref.finalize(self, os.close, self._fd)
        self._state = _State.of(os.fstat(self._fd))
        self.size = self._state.size
        if max_bytes is not None and self.size > max_bytes:
            raise BundleError(f"{path}: expected at most {max_bytes} bytes, got {self.size}; build the bundle again")

    def fileno(self) -> int:
        """Return the descriptor, whose position is neither used nor moved."""
        return self._fd

    def read(self) -> bytearray:
        """Return the contents.

        Raises:
            BundleError: they are no longer those that were there when the file was opened.
        """
        contents = bytearray(self.size)
        self.read_into(memoryview(contents))
        return contents

    def read_into(self, memory: memoryview, offset: int = 0) -> None:
        """Fill writable memory of bytes with what begins at ``offset``.

        Raises:
            BundleError: as `read`.
        """
        starts = range(0, len(memory), _PIECE_BYTES)

        def read_piece(start: int) -> None:
            self._read_piece(memory[start : start + _PIECE_BYTES], offset + start)

        if len(starts) <= 1:
            for start in starts:
                read_piece(start)
        else:
            with ThreadPoolExecutor(min(len(starts), _READING_THREADS)) as threads:
                list(threads.map(read_piece, starts))
        self.check_unchanged()

    def sha256(self) -> str:
        """Return the sha256 of the contents, in hexadecimal."""
        digest = hashlib.sha256()
        for block in self._blocks():
            digest.update(block)
        return digest.hexdigest()

    def check_unchanged(self) -> None:
        """Raise BundleError if the file was written to since it was opened, wherever it is now."""
        if _State.of(os.fstat(self._fd)) != self._state:
            raise self._changed()

    def check_in_place(self) -> None:
        """Raise BundleError if the path no longer leads to this file as it was: for what opens it by its path."""
        try:
            found = _State.of(os.lstat(self.path))
        except OSError:
            raise self._changed() from None
        if found != self._state:
            raise self._changed()

    def _blocks(self) -> Iterator[memoryview]:
        """Yield the contents in pieces of the same memory, each valid until the next."""
        memory = memoryview(bytearray(min(_HASHED_BYTES, self.size)))
        for start in range(0, self.size, _HASHED_BYTES):
            block = memory[: self.size - start]
            self._read_piece(block, start)
            yield block

    def _read_piece(self, memory: memoryview, offset: int) -> None:
        done = 0
        while done < len(memory):
            try:
                count = os.preadv(self._fd, [memory[done:]], offset + done)
            except OSError as error:
                raise BundleError(f"{self.path}: cannot be read: {error.strerror}") from None
            if count == 0:
                raise self._changed()
            done += count

    def _changed(self) -> BundleError:
        return BundleError(f"{self.path}: it was changed while in use; load the bundle again")


def _open_regular(path: Path, folder_fd: int | None) -> int:
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC  # without O_NONBLOCK a pipe waits for a writer
    try:
        fd = os.open(path if folder_fd is None else path.name, flags, dir_fd=folder_fd)
    except FileNotFoundError:
        raise BundleError(f"{path}: missing; build the bundle again") from None
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise BundleError(
                f"{path}: expected a file, got a link, which may lead out of the bundle; copy the bundle with the "
                "files themselves: cp -rL"
            ) from None
        raise BundleError(f"{path}: cannot be read: {error.strerror}") from None
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise BundleError(f"{path}: expected a regular file, got {_kind(path, folder_fd)}; build the bundle again")
    return fd


def _kind(path: Path, folder_fd: int | None) -> str:
    mode = os.stat(path if folder_fd is None else path.name, dir_fd=folder_fd, follow_symlinks=False).st_mode
    kinds = {"a folder": stat.S_ISDIR, "a pipe": stat.S_ISFIFO, "a device": stat.S_ISCHR}
    return next((kind for kind, is_kind in kinds.items() if is_kind(mode)), "something else")
