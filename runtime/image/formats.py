"""The formats of image files that are opened, and the one function that opens them.

Pillow knows more. Left out are those that run a program or read other files (EPS, WMF), that have no signature, so that
any bytes may be taken for one (TGA), and old ones whose decoders few files have ever tried.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import BinaryIO

from PIL import Image, UnidentifiedImageError

from runtime.errors import ImageError
from runtime.image.limits import require_within_limit
from runtime.image.quiet import quiet

_PLUGINS = {
    "AVIF": "Avif",
    "BMP": "Bmp",
    "GIF": "Gif",
    "ICO": "Ico",
    "JPEG": "Jpeg",
    "JPEG2000": "Jpeg2K",
    "MPO": "Mpo",
    "PNG": "Png",
    "PPM": "Ppm",
    "QOI": "Qoi",
    "TIFF": "Tiff",
    "WEBP": "WebP",
}
"""What the names of Pillow's modules begin with, by its names of the formats."""
FORMATS = tuple(_PLUGINS)
"""Pillow's names of the formats that are opened; HEIF too where pillow-heif is installed."""

IMAGE_SUFFIXES = frozenset(
    (
        *(".apng", ".avif", ".avifs", ".bmp", ".gif", ".heic", ".heif", ".hif", ".ico"),
        *(".j2k", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".jpx", ".mpo", ".pbm"),
        *(".pfm", ".pgm", ".png", ".pnm", ".ppm", ".qoi", ".tif", ".tiff", ".webp"),
    )
)
"""Endings of the names of image files, in lower case."""

_HEIF_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1"}
_AVIF_BRANDS = {b"avif", b"avis"}
_HEAD_BYTES = 64


def open_file(path: Path) -> Image.Image:
    """Return the image in a file, loaded whole, in the mode that it was stored in.

    Raises:
        ImageError: nothing readable there, or a truncated file.
    """
    name = os.fspath(path)
    try:
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
            raise ImageError(f"{name}: expected a regular file, got a pipe or a device; give the bytes that it holds")
        with path.open("rb") as file:
            return decode(file, name)
    except FileNotFoundError:
        raise ImageError(f"{name}: no such file") from None
    except ImageError:
        raise
    except OSError as error:
        raise ImageError(f"{name}: cannot be read as an image: {error.strerror or error}") from None
    except ValueError as error:  # a name with a zero in it
        raise ImageError(f"{name!r}: cannot be read as an image: {error}") from None


def decode(file: BinaryIO, name: str) -> Image.Image:
    """Return the encoded image in a file, loaded whole, in the mode that it was stored in.

    Args:
        name: what errors call it.

    Raises:
        ImageError: it is damaged, of no format that is opened, or has too many pixels.
    """
    with _header_read(file, name) as image:
        require_within_limit(name, *image.size)
        image.load()
        return image


def read_size(file: BinaryIO, name: str) -> tuple[int, int]:
    """Return the width and height that the header of an encoded image says, without decoding it.

    Args:
        name: what errors call it.

    Raises:
        ImageError: it is of no format that is opened, or has no header.
    """
    with _header_read(file, name) as image:
        return image.size


@contextmanager
def _header_read(file: BinaryIO, name: str) -> Iterator[Image.Image]:
    """Open an encoded image whose pixels are not decoded yet."""
    start = file.tell()
    head = file.read(_HEAD_BYTES)
    file.seek(start)
    with decoder_errors(name, head), Image.open(file, formats=_formats_for(head, name)) as image:
        yield image


@contextmanager
def decoder_errors(name: str, head: bytes = b"") -> Iterator[None]:
    """Turn whatever a decoder raises into one line that names the image, and keep its warnings to ourselves.

    Args:
        head: the first bytes of the file, which say what it is where no decoder knows it.
    """
    with quiet():
        try:
            yield
        except ImageError:
            raise
        except UnidentifiedImageError:
            raise ImageError(f"{name}: {_unknown(head)}") from None
        except Image.DecompressionBombError as error:
            raise ImageError(f"{name}: {error}") from None
        except Exception as error:  # each decoder has its own on broken files
            words = " ".join(str(error).split()) or type(error).__name__
            raise ImageError(f"{name}: cannot be read as an image: {words}") from None


@lru_cache(maxsize=1)
def _formats() -> tuple[str, ...]:
    """Return those of the formats that this Pillow has, and load their decoders and no others."""
    for plugin in _PLUGINS.values():
        with suppress(ImportError):
            import_module(f"PIL.{plugin}ImagePlugin")
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _formats_for(head: bytes, name: str) -> tuple[str, ...]:
    """Return the formats that a file is tried as.

    Raises:
        ImageError: it is a HEIC photo, and pillow-heif is not installed.
    """
    brands = _brands(head)
    if not brands & _HEIF_BRANDS or brands & _AVIF_BRANDS:
        return _formats()
    try:
        import_module("pillow_heif").register_heif_opener()
    except ImportError:
        raise ImageError(
            f"{name}: a HEIC photo, which Pillow cannot read by itself: pip install pillow-heif, or save it as JPEG"
        ) from None
    return ("HEIF", *_formats())


def _unknown(head: bytes) -> str:
    if _brands(head) & _AVIF_BRANDS:
        return "an AVIF image, or a damaged one; AVIF needs Pillow 11.3 or newer: pip install -U pillow"
    return f"not an image that Pillow can read as one of {', '.join(FORMATS)}"


def _brands(head: bytes) -> set[bytes]:
    """Return the brands that a file of ISO's media files says it is of; none of other files."""
    if head[4:8] != b"ftyp":
        return set()
    end = min(int.from_bytes(head[:4], "big"), len(head))
    return {head[8:12], *(head[at : at + 4] for at in range(16, end - 3, 4))}
