"""What goes wrong, as types: every message says what, where, what was expected and what to do about it."""

from __future__ import annotations


class PatchcaptionError(Exception):
    """Base of every error this project raises on purpose; catch it to catch them all."""


class ImageError(PatchcaptionError, ValueError):
    """An image that cannot be read or has a wrong type or shape."""


class RegionError(PatchcaptionError, ValueError):
    """A region that has no place on its image: not finite, inverted, outside, empty or wrongly sized."""


class BundleError(PatchcaptionError):
    """A bundle that is missing, incomplete, altered or of another schema."""


class BackendError(PatchcaptionError):
    """A backend that is unknown or not usable on this machine."""
