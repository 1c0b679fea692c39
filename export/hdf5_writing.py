"""Writes HDF5 files such that a full disk is an error: HDF5 itself ends the process if it cannot close a file.

An exception in the middle of a call of HDF5 is one for it too, so signals wait.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py

from runtime.system.outputs import Output, write_whole
from runtime.system.signals import uninterrupted


class Hdf5Writer:
    """A new HDF5 file, in place of what is there."""

    def __init__(self, raw: io.FileIO) -> None:
        self._writer = _ForgivingFile(raw)
        with uninterrupted():
            self._file = h5py.File(self._writer, "w")

    def write(self, put: Callable[[h5py.File], object]) -> None:
        """Let a function write a part, which must be short: Ctrl-C and other signals wait for its end.

        Raises:
            OSError: it could not be written.
        """
        with uninterrupted():
            put(self._file)
        self.check()

    def close(self) -> None:
        """Write what HDF5 still holds."""
        with uninterrupted():
            self._file.close()

    def check(self) -> None:
        """Raise OSError if something could not be written."""
        self._writer.check()


@contextmanager
def new_hdf5_file(path: Path) -> Iterator[Hdf5Writer]:
    """Yield what writes a new HDF5 file.

    Raises:
        PatchcaptionError: it cannot be written.
    """
    with Output(path).errors(), path.open("w+b", buffering=0) as raw:
        writer = Hdf5Writer(raw)
        try:
            yield writer
        finally:
            writer.close()
        writer.check()


class _ForgivingFile:
    """A file that HDF5 always finds writable, and which remembers the first failure; HDF5 seeks before each call."""

    def __init__(self, raw: io.FileIO) -> None:
        self._raw = raw
        self._failure: OSError | None = None
        self.seek, self.tell, self.read, self.flush = raw.seek, raw.tell, raw.read, raw.flush

    def check(self) -> None:
        """Raise OSError if something could not be written."""
        if self._failure is not None:
            raise self._failure

    def write(self, data: Any) -> int:
        self._try(lambda: write_whole(self._raw, data))
        return len(data)

    def truncate(self, size: int) -> int:
        self._try(lambda: self._raw.truncate(size))
        return size

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        got = self._raw.readinto(view)
        view[got:] = bytes(len(view) - got)  # in the place of what was not written
        return len(view)

    def _try(self, write: Callable[[], object]) -> None:
        try:
            write()
        except OSError as error:
            self._failure = self._failure or error
