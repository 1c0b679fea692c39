"""`patchcaption doctor`: what this machine has, and whether it works, with the fix for what does not."""

from __future__ import annotations

import os
from collections.abc import Iterator

from runtime.doctor.backends import on_backends
from runtime.doctor.bundles import on_bundle
from runtime.doctor.finding import Finding
from runtime.doctor.machine import on_machine

__all__ = ["Finding", "examine"]


def examine(bundle: str | os.PathLike[str] | None = None) -> Iterator[Finding]:
    """Check the machine, each backend with a small graph, and a bundle if one is named, one by one.

    Args:
        bundle: a folder, or a repository of the hub, to run on every backend that works here, against the first of
            them on the CPU.
    """
    yield from on_machine()
    works = False
    for finding in on_backends():
        works |= finding.state == "pass"
        yield finding
    if not works:
        yield Finding("backends", "fail", "none works here", "pip install 'patchcaption[cpu]'")
    if bundle is not None:
        yield from on_bundle(bundle)
