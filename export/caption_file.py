"""Reads files of captions: a text file, one a line; JSON lines; a list in JSON; or COCO captions.

A caption that nobody can learn from or look up (empty, without a visible character, no text, cut in the middle of a
character, of the length of a book) is no caption: it is listed with its place and the reason, and the others are read.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from export.checkpoint import CheckpointError

MAX_CHARACTERS = 10_000
"""The longest caption; text towers read 77 tokens, some 400 characters."""

CAPTIONS_HELP = "a text file, one caption a line; JSON lines; COCO captions; or a list in JSON"
_EMPTY, _INVISIBLE = "it is empty", "it has no visible character"
_NOTHING = (None, _EMPTY, _INVISIBLE)
"""What is wrong with captions that nothing is lost with."""
_SURROGATE = re.compile("[\ud800-\udfff]")
_LINE_BREAK = re.compile("\r\n|\n|\r")
_FILLERS = frozenset("\u115f\u1160\u2800\u3164\uffa0")
"""Letters and signs that nobody sees: Hangul's fillers, and the blank pattern of Braille."""
_LAYOUTS = (
    'a text file, one caption a line; JSON lines of texts or {"caption": ...}; a list of texts in JSON; or COCO '
    'captions {"annotations": [{"caption": ...}]}'
)


@dataclass(frozen=True)
class BadCaption:
    """An entry of a file that is no caption.

    Attributes:
        place: where it is, "line 3" for example.
        reason: why it is none, without anything of it.
    """

    place: str
    reason: str


@dataclass(frozen=True)
class CaptionFile:
    """What a file holds.

    Attributes:
        captions: without spaces around them.
        places: where each of them is, "line 3" for example.
        bad: the entries that are no captions.
    """

    captions: tuple[str, ...]
    places: tuple[str, ...]
    bad: tuple[BadCaption, ...] = ()


@dataclass(frozen=True)
class _Unreadable:
    """An entry that cannot be told.

    Attributes:
        reason: why.
    """

    reason: str


def read_caption_file(path: Path) -> CaptionFile:
    """Read the captions of a file.

    Raises:
        CheckpointError: it cannot be read, has another layout, or holds no caption.
    """
    captions, places, bad = list[str](), list[str](), list[BadCaption]()
    for place, entry in _entries(path):
        reason = fault_of(entry)
        if reason is None:
            captions.append(str(entry).strip())
            places.append(place)
        else:
            bad.append(BadCaption(place, reason))
    if not captions:
        raise CheckpointError(f"{path}: expected at least one caption, got none{_first_of(bad)}")
    return CaptionFile(tuple(captions), tuple(places), tuple(bad))


def read_captions(path: Path) -> list[str]:
    """Read captions, without spaces around them and without empty ones, of a file that has no other bad ones.

    Raises:
        CheckpointError: as `read_caption_file`, or an entry is no caption: it names the first.
    """
    found = read_caption_file(path)
    refused = [one for one in found.bad if one.reason not in _NOTHING]
    if refused:
        raise CheckpointError(f"{path}: {refused[0].place}: {refused[0].reason}")
    return list(found.captions)


def read_texts(path: Path) -> list[str]:
    """Read captions as they are in JSON, with the spaces around them and empty ones; of a text file as `read_captions`.

    Raises:
        CheckpointError: as `read_captions`.
    """
    if path.suffix.lower() != ".json":
        return read_captions(path)
    entries = list(_entries(path))
    if not entries:
        raise CheckpointError(f"{path}: expected at least one caption, got none")
    for place, entry in entries:
        reason = fault_of(entry)
        if reason not in _NOTHING:
            raise CheckpointError(f"{path}: {place}: {reason}")
    return [str(entry) for _, entry in entries]


def fault_of(caption: object) -> str | None:
    """Return why an entry is no caption; None if it is one. It takes no longer for a long one."""
    if isinstance(caption, _Unreadable):
        return caption.reason
    if not isinstance(caption, str):
        return f"expected a text, got {'nothing' if caption is None else type(caption).__name__}"
    if len(caption) > MAX_CHARACTERS:
        return f"it has {len(caption):,} characters, more than {MAX_CHARACTERS:,}"
    if _SURROGATE.search(caption):
        return "it is not UTF-8, or has half a character (a lone surrogate)"
    if "\0" in caption:
        return "it holds the character NUL"
    if not caption.strip():
        return _EMPTY
    return None if any(map(_is_visible, caption)) else _INVISIBLE


def _is_visible(character: str) -> bool:
    """Return whether a character is one that is seen by itself: no space, control, format character or accent."""
    return unicodedata.category(character) not in ("Cc", "Cf", "Mn", "Me", "Zs", "Zl", "Zp") and (
        character not in _FILLERS
    )


def summary(bad: Iterable[BadCaption]) -> Iterator[str]:
    """Yield a line for each reason: the place of the first entry that has it, and how many others do."""
    kinds: dict[str, list[BadCaption]] = {}
    for one in bad:
        kinds.setdefault(re.sub(r"\d[\d,]*", "N", one.reason), []).append(one)
    for first, *others in kinds.values():
        more = f", and {len(others):,} more of that kind" if others else ""
        yield f"{first.place}: {first.reason}{more}"


def _first_of(bad: list[BadCaption]) -> str:
    return f"; {bad[0].place}: {bad[0].reason}" if bad else ""


def _entries(path: Path) -> Iterator[tuple[str, object]]:
    """Yield the entries of a file, whatever they are, with their places."""
    try:
        # Bytes that are no UTF-8 become lone surrogates, by which the caption that has them is found.
        text = path.read_bytes().decode("utf-8", "surrogateescape").removeprefix("\ufeff")
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file") from None
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read as captions: {error.strerror or error}") from None
    suffix = path.suffix.lower()
    if suffix == ".json":
        return _json_entries(path, text)
    return _lines(text) if suffix != ".jsonl" else _json_lines(text)


def _lines(text: str) -> Iterator[tuple[str, object]]:
    """Yield the lines of a text; what follows the last line break is one only if there is something."""
    lines = _LINE_BREAK.split(text)
    for number, line in enumerate(lines if lines[-1] else lines[:-1], 1):
        yield f"line {number}", line


def _json_lines(text: str) -> Iterator[tuple[str, object]]:
    for place, line in _lines(text):
        assert isinstance(line, str)
        try:
            entry = json.loads(line) if line.strip() else ""
        except (ValueError, RecursionError) as error:
            yield place, _Unreadable(f"it cannot be read as JSON: {_reason(error)}")
            continue
        yield place, _caption_of(entry)


def _json_entries(path: Path, text: str) -> Iterator[tuple[str, object]]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: cannot be read as captions: {_reason(error)}") from None
    kind = "caption"
    if isinstance(found, dict):
        kind, found = "annotation", found.get("annotations")
    if not isinstance(found, list):
        raise CheckpointError(f"{path}: expected {_LAYOUTS}")
    return ((f"{kind} {number}", _caption_of(entry)) for number, entry in enumerate(found))


def _reason(error: Exception) -> str:
    """Return why a text is no JSON."""
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} at character {error.pos}"
    return "it is nested too deep" if isinstance(error, RecursionError) else str(error)


def _caption_of(entry: Any) -> object:
    return entry.get("caption") if isinstance(entry, dict) else entry
