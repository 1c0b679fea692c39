"""The one limit of how large a picture may be: that of Pillow, for images and videos alike.

A few kilobytes can decode to gigabytes; the limit is `PIL.Image.MAX_IMAGE_PIXELS`, which a program may set.
"""

from __future__ import annotations

from PIL import Image

from runtime.errors import ImageError


def max_pixels() -> int | None:
    """Return the most pixels that an image or a frame of a video may have; None for any number."""
    return Image.MAX_IMAGE_PIXELS


def require_within_limit(name: str, width: int, height: int) -> None:
    """Refuse a picture that is too large to be decoded.

    Raises:
        ImageError: names the limit and how to raise it.
    """
    limit = max_pixels()
    if limit is not None and width * height > limit:
        raise ImageError(
            f"{name}: expected at most {limit} pixels, got {width} x {height}; PIL.Image.MAX_IMAGE_PIXELS is the limit"
        )
