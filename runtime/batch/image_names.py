"""The names of many images, one after another: those of files, of folders with all that is in them, patterns and lists.

Nothing here holds all names at once.
"""

from __future__ import annotations

import glob
import io
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from runtime.errors import ImageError
from runtime.image import IMAGE_SUFFIXES

LIST_SUFFIX = ".txt"
STDIN = "-"


class FoundImage(NamedTuple):
    """A name, and its place among the others: by the argument that it comes from, its line in a list, and itself."""

    argument: int
    line: int
    name: str


def find_images(arguments: Iterable[str]) -> Iterator[FoundImage]:
    """Yield the images that arguments name, in no order; a name may come twice.

    Args:
        arguments: files; folders, whose images are found by the endings of their names, in all folders in them but
            hidden ones; patterns, in which ** stands for any folders; lists of files, one a line, which end in .txt, or
            "-" for stdin.

    Raises:
        ImageError: an argument stands for no image.
    """
    for number, argument in enumerate(arguments):
        is_empty = True
        for line, name in _names(argument):
            is_empty = False
            yield FoundImage(number, line, os.path.normpath(name))
        if is_empty:
            raise ImageError(f"{argument}: no images in it; they are found by the endings of their names")


def as_unicode(text: str) -> str:
    """Return a path, or a text with one in it, as databases and tables hold it: bytes that are no UTF-8 as escapes."""
    return text.encode("utf-8", "backslashreplace").decode()


def _names(argument: str) -> Iterator[tuple[int, str]]:
    path = Path(argument)
    if not argument:  # which pathlib takes for the working directory
        raise ImageError("'': no such file")
    try:
        os.fsencode(argument)
    except UnicodeEncodeError as error:  # no file system has such a name, nor can a plan hold it
        raise ImageError(f"{argument!r}: cannot be read: {error}") from None
    try:
        if argument == STDIN:
            yield from _lines(argument, lambda: io.FileIO(sys.stdin.fileno(), closefd=False))
        elif path.is_dir():
            yield from ((0, name) for name in _images_in(argument))
        elif path.suffix.lower() == LIST_SUFFIX:
            yield from _lines(argument, lambda: path.open("rb"))
        elif os.path.lexists(argument) or not glob.has_magic(argument):
            yield 0, argument
        else:
            yield from _matches(argument)
    except ImageError:
        raise
    except OSError as error:
        raise ImageError(f"{argument}: cannot be read: {error.strerror or error}") from None
    except ValueError:  # a zero in the name; whoever opens it says so
        yield 0, argument


def _images_in(folder: str) -> Iterator[str]:
    """Yield the images in a folder and in those in it, but for hidden ones."""
    folders = [folder]
    while folders:
        with os.scandir(folders.pop()) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if entry.is_dir(follow_symlinks=False):
                    folders.append(entry.path)
                elif Path(entry.name).suffix.lower() in IMAGE_SUFFIXES and not entry.is_dir():
                    yield entry.path


def _matches(pattern: str) -> Iterator[tuple[int, str]]:
    is_found = False
    for name in glob.iglob(pattern, recursive=True):  # noqa: PTH207  # Path.glob takes no absolute pattern
        if not os.path.isdir(name):  # noqa: PTH112
            is_found = True
            yield 0, name
    if not is_found:
        raise ImageError(f"{pattern}: no such file, and none that the pattern matches")


def _lines(name: str, open_list: Callable[[], BinaryIO]) -> Iterator[tuple[int, str]]:
    """Yield the names in a list, by their lines; empty ones are passed over."""
    with open_list() as file:
        for number, line in enumerate(file):
            text = line.rstrip(b"\r\n")
            if b"\0" in text:
                raise ImageError(f"{name}: line {number + 1}: expected the name of a file, got bytes; is it a list?")
            if text.strip():
                yield number, os.fsdecode(text)
