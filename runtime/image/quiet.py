"""Keeps what Pillow has to say of damaged files out of a program's warnings while they are decoded.

Everything that matters becomes an error or is none. `warnings.catch_warnings` is not for threads: one that leaves it
brings back the filters that another has replaced meanwhile; and each change by `warnings.filterwarnings` lets all
warnings be shown once more. So a filter of Pillow's own modules is put before the others while any thread decodes.
"""

from __future__ import annotations

import ctypes
import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from threading import Lock
from typing import Any, cast

logging.getLogger("PIL").addHandler(logging.NullHandler())  # else a program without logging has it on stderr

_IGNORE_PILLOW = ("ignore", None, Warning, re.compile(r"(PIL|pillow_heif)\b"), 0)
"""A filter as `warnings` keeps it: action, message, category, module, line."""


def _silence_libtiff() -> None:
    """Keep libtiff, which Pillow decodes by, from writing to stderr; its failures are Pillow's errors all the same."""
    with suppress(ImportError, OSError, AttributeError):  # a Pillow that is built otherwise
        library = ctypes.CDLL(import_module("PIL._imaging").__file__)
        for name in ("TIFFSetErrorHandler", "TIFFSetWarningHandler"):
            set_handler = getattr(library, name)
            set_handler.argtypes, set_handler.restype = [ctypes.c_void_p], ctypes.c_void_p
            set_handler(None)


_silence_libtiff()
_lock = Lock()
_decoding = 0


@contextmanager
def quiet() -> Iterator[None]:
    """Ignore the warnings of Pillow, of whatever category, until the end of the block."""
    global _decoding
    with _lock:
        _decoding += 1
        filters = _filters()
        if not filters or filters[0] is not _IGNORE_PILLOW:
            filters.insert(0, _IGNORE_PILLOW)
    try:
        yield
    finally:
        with _lock:
            _decoding -= 1
            if not _decoding:
                filters = _filters()
                filters[:] = [one for one in filters if one is not _IGNORE_PILLOW]


def _filters() -> list[Any]:
    return cast("list[Any]", warnings.filters)
