"""A mapping whose values lie in a temporary file, for more of them than memory should hold."""

from __future__ import annotations

import os
import pickle
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Generic, TypeVar

from runtime import PatchcaptionError

T = TypeVar("T")


class DiskMapping(Mapping[str, T], Generic[T]):
    """A mapping in the order of its keys' first appearance; in memory there is only where each value lies.

    The file has no name, so that nobody else can open it, and is gone with the process.
    """

    def __init__(self) -> None:
        with _errors():
            self._file = tempfile.TemporaryFile()  # noqa: SIM115  closed by `close`
        self._places: dict[str, tuple[int, int]] = {}

    def __setitem__(self, key: str, value: T) -> None:
        """Keep a value.

        Raises:
            PatchcaptionError: the disk is full.
        """
        data = pickle.dumps(value, pickle.HIGHEST_PROTOCOL)
        with _errors():
            offset = self._file.seek(0, os.SEEK_END)
            self._file.write(data)
        self._places[key] = offset, len(data)

    def __getitem__(self, key: str) -> T:
        offset, length = self._places[key]
        with _errors():
            self._file.seek(offset)
            value: T = pickle.loads(self._file.read(length))  # what this process has written
        return value

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def __enter__(self) -> DiskMapping[T]:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Remove the file."""
        with suppress(OSError):  # for what a full disk has not taken
            self._file.close()


@contextmanager
def _errors() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise PatchcaptionError(
            f"{tempfile.gettempdir()}: cannot be written: {error.strerror or error}; TMPDIR names another folder"
        ) from None
