"""Imports what only captions of many images need."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from runtime.errors import PatchcaptionError


def import_extra(module: str, extra: str, purpose: str) -> Any:
    """Import a module of an optional dependency.

    Args:
        extra: the extra of this package that brings it.
        purpose: what it is needed for.

    Raises:
        PatchcaptionError: it is not installed; it says how to install it.
    """
    try:
        return import_module(module)
    except ImportError as error:
        raise PatchcaptionError(
            f"{purpose}: {module} cannot be imported ({error}): pip install 'patchcaption[{extra}]'"
        ) from None
