"""The library of the native kernels, where they were built: `make native` and wheels put it beside this file.

The environment variable PATCHCAPTION_NATIVE names another path of it, or is "off".
"""

from __future__ import annotations

import ctypes
import os
from functools import lru_cache
from itertools import count, takewhile
from pathlib import Path

from runtime.errors import BackendError
from runtime.system.installation import NATIVE_FIX

PATH_VARIABLE = "PATCHCAPTION_NATIVE"
_FILE = Path(__file__).with_name("libpatchcaption.so")
_ABI = 6
_FAILURES = {1: "invalid argument", 3: "this machine has no such variant", 4: "the bank's file cannot be read"}


FLOAT_STORAGES = {"f32": 0, "bf16": 2}
"""enum patchcaption_storage, by OpenVINO's names."""


@lru_cache(maxsize=1)
def native_library() -> ctypes.CDLL | None:
    """Return the library; None where it was not built or is switched off.

    Raises:
        BackendError: there is a library that cannot be used.
    """
    path = os.environ.get(PATH_VARIABLE)
    if path == "off" or (path is None and not _FILE.exists()):
        return None
    return open_library(Path(path) if path else _FILE)


def native_variants(names: str) -> list[str]:
    """Return what a function of the library names the variants of that this processor supports, the fastest first.

    Raises:
        BackendError: there is a library that cannot be used.
    """
    library = native_library()
    if library is None:
        return []
    name_of = library[names]
    name_of.restype = ctypes.c_char_p
    return [name.decode() for name in takewhile(bool, map(name_of, count()))]


def library_with(names: str) -> ctypes.CDLL | None:
    """Return the library; None where it has no variant of what a function names them of for this processor.

    Raises:
        BackendError: there is a library that cannot be used.
    """
    return native_library() if native_variants(names) else None


def open_library(path: Path) -> ctypes.CDLL:
    """Open the library.

    Raises:
        BackendError: the file is not there, not a library, or of another version.
    """
    try:
        library = ctypes.CDLL(str(path))
        abi = library.patchcaption_abi()
    except (OSError, AttributeError) as error:
        raise BackendError(f"{path}: not the native kernels: {error}; {NATIVE_FIX}") from None
    if abi != _ABI:
        raise BackendError(f"{path}: its ABI version is {abi}, expected {_ABI}; {NATIVE_FIX}")
    return library


def check_status(status: int) -> None:
    """Raise what a call's status says.

    Raises:
        BackendError: the call failed.
        MemoryError: it had too little memory.
    """
    if status == 2:
        raise MemoryError("native kernels: out of memory")
    if status != 0:
        raise BackendError(f"native kernels: {_FAILURES.get(status, f'status {status}')}")
