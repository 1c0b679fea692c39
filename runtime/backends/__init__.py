"""Backends by name."""

from __future__ import annotations

from runtime.backends.base import Backend, Engine
from runtime.backends.ort import OrtBackend
from runtime.errors import BackendError

BACKENDS = ("auto", "cpu")


def open_backend(name: str, threads: int | None = None) -> Backend:
    """The backend called ``name``: "cpu", or "auto" for the best one here, which today is "cpu".

    Raises:
        BackendError: no backend of that name, or what it needs is not installed.
    """
    if name not in BACKENDS:
        raise BackendError(f"backend {name!r}: expected one of {', '.join(map(repr, BACKENDS))}")
    return OrtBackend(threads)


__all__ = ["BACKENDS", "Backend", "Engine", "OrtBackend", "open_backend"]
