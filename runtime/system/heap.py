"""The process's heap."""

from __future__ import annotations

import ctypes


def return_free_memory() -> None:
    """Give the memory that was freed back to the system, where the C library keeps it and can be asked to (glibc).

    What a load has copied and freed is hundreds of MiB, of which glibc keeps much for later allocations.
    """
    malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if malloc_trim is not None:
        malloc_trim(0)
