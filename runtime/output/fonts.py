"""Fonts for captions of any writing: Pillow's own, or one of the machine's that has the characters it lacks."""

from __future__ import annotations

import os
import unicodedata
import warnings
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import TypeAlias

from PIL import ImageFont

from runtime.errors import PatchcaptionError

Font: TypeAlias = "ImageFont.FreeTypeFont | ImageFont.ImageFont"
FontFile: TypeAlias = "str | os.PathLike[str] | None"
"""A font file (.ttf, .otf, .ttc); None for Pillow's own font."""

_FOLDERS = ("/usr/share/fonts", "/usr/local/share/fonts", "~/.local/share/fonts", "~/.fonts", "/System/Library/Fonts")
_FIRST = (
    "DejaVuSans.",
    "NotoSans-Regular.",
    "NotoSansCJK-Regular.",
    "NotoSansCJK",
    "DroidSansFallback",
    "wqy-",
    "Noto",
)
"""How the names of fonts begin that have many characters, in the order that they are tried in."""
_SUFFIXES = (".ttf", ".otf", ".ttc")
_MOST_FILES = 400
_JOINERS = "\u200c\u200d"
_NO_CHARACTER = "\U0010ffff"
"""What no font has: it is drawn as all that a font lacks."""


class FontChoice:
    """Picks a font for each caption.

    Args:
        file: the font to take where it has the caption's characters.
        size: in pixels.

    Raises:
        PatchcaptionError: the file is no font.
    """

    def __init__(self, file: FontFile, size: int) -> None:
        if file is not None and not isinstance(file, (str, os.PathLike)):
            raise PatchcaptionError(f"font: expected a font file or None, got {type(file).__name__}")
        self._file, self._size = None if file is None else os.fspath(file), size
        load_font(self._file, size)

    def of(self, text: str) -> tuple[Font, str]:
        """Return a font, and the text in characters that it has.

        It is the first that has all of them, or else that which has the most: what it lacks becomes the letter without
        its accents, or a question mark, and a warning says so. Control characters, and what turns the direction of a
        text, are left out: fonts have empty boxes for them.
        """
        marks = frozenset(_shown(text))
        file = _file_for(self._file, marks)
        unmarked = frozenset(text) - marks
        text = "".join(one for one in text if one not in unmarked or one.isspace() or _has_effect(one, file))
        missing = _missing(file, marks)
        if missing:
            # Without the caption: Python shows a warning of the same words only once.
            warnings.warn(
                f"no font here has the characters {' '.join(sorted(missing))}; install one that has, or give its file "
                "as font",
                stacklevel=3,
            )
            text = "".join(_replaced(character, file) if character in missing else character for character in text)
        return load_font(file, self._size), text


@lru_cache(maxsize=64)
def load_font(file: str | None, size: int) -> Font:
    """Return the font of a file in a size in pixels; Pillow's own for None.

    Raises:
        PatchcaptionError: it is no font.
    """
    if file is None:
        return ImageFont.load_default(size=size)
    try:
        return ImageFont.truetype(file, size)
    except (OSError, ValueError, ImportError) as error:  # an ImportError if Pillow was built without FreeType
        raise PatchcaptionError(f"{file}: cannot be read as a font: {error}") from None


@lru_cache(maxsize=256)
def _file_for(preferred: str | None, characters: frozenset[str]) -> str | None:
    best, fewest = preferred, len(_missing(preferred, characters))
    if not fewest:
        return preferred
    for file in (None, *_installed()):
        missing = len(_missing(file, characters))
        if missing < fewest:
            best, fewest = file, missing
        if not fewest:
            break
    return best


@lru_cache(maxsize=4096)
def _missing(file: str | None, characters: frozenset[str]) -> frozenset[str]:
    """Return those characters that a font does not have."""
    try:
        font = load_font(file, 16)
        lacking = _drawn(font, _NO_CHARACTER)
        return frozenset(one for one in characters if _drawn(font, one) == lacking)
    except (PatchcaptionError, OSError, ValueError):  # a damaged file among the machine's
        return characters


def _drawn(font: Font, character: str) -> bytes:
    return bytes(font.getmask(character))


@lru_cache(maxsize=1)
def _installed() -> tuple[str, ...]:
    """Return the machine's font files, those with many characters first."""
    files = sorted(_font_files(), key=lambda file: (_rank(file.name), file.name))
    return tuple(map(str, files))


def _font_files() -> Iterator[Path]:
    count = 0
    for folder in _FOLDERS:
        for place, _, names in os.walk(Path(folder).expanduser()):
            for name in names:
                if name.lower().endswith(_SUFFIXES) and count < _MOST_FILES:
                    count += 1
                    yield Path(place, name)


def _rank(name: str) -> int:
    return next((rank for rank, start in enumerate(_FIRST) if name.startswith(start)), len(_FIRST))


def _shown(text: str) -> Iterator[str]:
    """Yield the characters of a text that leave a mark."""
    return (one for one in text if not one.isspace() and unicodedata.category(one) not in ("Cc", "Cf", "Cn", "Cs"))


def _has_effect(character: str, file: str | None) -> bool:
    """Return whether a font knows a character that joins or parts letters, or that is newer than this Python."""
    is_drawn = character in _JOINERS or unicodedata.category(character) == "Cn"
    return is_drawn and not _missing(file, frozenset(character))


def _replaced(character: str, file: str | None) -> str:
    base = "".join(one for one in unicodedata.normalize("NFKD", character) if not unicodedata.combining(one))
    return base if base and not _missing(file, frozenset(base)) else "?"
