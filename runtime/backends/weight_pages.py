"""Memory pages of weight files that a backend has mapped."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from pathlib import Path

_MADV_DONTNEED = 4


def release_weight_pages(folder: Path) -> None:
    """Drop the pages of weight files from this process's memory, where they are mapped and only read.

    Backends repack most weights when they open a graph and never read them from the file again: 150 to 590 MiB for
    ViT-B and the published decoder. A page that is read after all is loaded again. Does nothing outside Linux.
    """
    if not sys.platform.startswith("linux"):
        return
    madvise = ctypes.CDLL(None).madvise
    madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    for start, end in _mappings(folder.resolve()):
        madvise(start, end - start, _MADV_DONTNEED)


def _mappings(folder: Path) -> Iterator[tuple[int, int]]:
    """Yield the address ranges at which weight files of a folder are mapped and were never written to."""
    addresses: str | None = None
    for line in Path("/proc/self/smaps").read_text(encoding="utf-8", errors="surrogateescape").splitlines():
        key, *values = line.split(maxsplit=5)
        if not key.endswith(":"):  # the first line of a mapping: addresses, permissions, offset, device, inode, file
            file = Path(values[4]) if len(values) == 5 else None
            addresses = key if file and file.parent == folder and file.name.endswith(".onnx.data") else None
        elif key == "Anonymous:" and values[0] == "0" and addresses:
            start, end = addresses.split("-")
            yield int(start, 16), int(end, 16)
