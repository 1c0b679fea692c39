"""The error of exports."""

from __future__ import annotations

from runtime.errors import PatchcaptionError


class ExportError(PatchcaptionError):
    """A graph that could not be made, or does not compute what its module does."""
