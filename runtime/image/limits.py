"""The one limit of how large a picture may be: that of Pillow, for images and videos alike.

A few kilobytes can decode to gigabytes; the limit is `PIL.Image.MAX_IMAGE_PIXELS`, which a program may set.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from PIL import Image

from runtime.errors import ImageError

T = TypeVar("T")


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


def split_by_pixels(
    images: Iterable[T], num_pixels: Callable[[T], int], most_pixels: int, most_images: int | None = None
) -> Iterator[list[T]]:
    """Yield images in order, as many at a time as may be held together; one that is too large goes by itself.

    Args:
        num_pixels: of an image.
        most_pixels: of those of a part together.
        most_images: of a part; None for any number.
    """
    part, pixels = list[T](), 0
    for image in images:
        size = num_pixels(image)
        if part and (len(part) == most_images or pixels + size > most_pixels):
            yield part
            part, pixels = [], 0
        part.append(image)
        pixels += size
    if part:
        yield part
