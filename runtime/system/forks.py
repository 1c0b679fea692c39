"""Refuses work in a forked process: a fork copies no threads, so engines there would wait for ever."""

from __future__ import annotations

import ctypes
import os
from weakref import WeakSet

from runtime.errors import PatchcaptionError

_engines_pid: int | None = None
"""The process that has opened engines; in a process that was forked from it this is still the other's."""


_owners: WeakSet[object] = WeakSet()


def claim_engines(owner: object) -> None:
    """Note that this process is about to open engines, which an object will own.

    Raises:
        PatchcaptionError: it was forked from a process that had already opened some.
    """
    global _engines_pid
    require_own_engines()
    _engines_pid = os.getpid()
    _owners.add(owner)


def require_own_engines() -> None:
    """Refuse to go on where engines were opened before this process was forked.

    Raises:
        PatchcaptionError: names the fix.
    """
    if is_forked():
        raise PatchcaptionError(
            f"process {os.getpid()} was forked from process {_engines_pid} after that had loaded a captioner, whose "
            "threads a fork does not copy: fork before the first captioner is loaded, or start processes by "
            'multiprocessing.get_context("spawn")'
        )


def is_forked() -> bool:
    """Return whether engines were opened by the process that this one was forked from."""
    return _engines_pid not in (None, os.getpid())


def _keep_owners() -> None:
    """Keep a forked process from destroying engines: at its end that would wait for threads that are not there."""
    for owner in list(_owners):
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(owner))


os.register_at_fork(after_in_child=_keep_owners)
