"""What the CPU is."""

from __future__ import annotations

import contextlib
import os
import platform
from pathlib import Path


def cpu_name() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() in ("model name", "CPU part"):  # x86, Arm
                return f"{platform.machine()} {value.strip()}"
    return platform.machine()


def usable_cores() -> int:
    if hasattr(os, "sched_getaffinity"):  # on Linux, where a container may leave fewer than there are
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def threads_of_each(callers: int, threads: int | None) -> int | None:
    """How many threads each of so many callers at once gets of those that an engine may use; None is all cores."""
    return threads if callers == 1 else max(1, (threads or usable_cores()) // callers)
