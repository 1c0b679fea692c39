"""Stdout and stderr, which a shell may have closed, or which may be full or read no more."""

from __future__ import annotations

import io
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TextIO

from runtime.errors import PatchcaptionError

_CONTROLS = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters but the end of a line, those that turn the direction of what follows, and lone surrogates."""


def open_standard_streams() -> None:
    """Prepare the standard streams for all that a shell may have made of them.

    Where one is closed, its number would go to the next file that is opened, and a library's messages into that; so it
    is given to what refuses to be used. Characters that stdout has no code for are written as escapes.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None and not _is_open(number):
            setattr(sys, name, _unusable_stream(number))
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def finish_standard_streams() -> None:
    """Write what stdout and stderr still hold, while a failure can be told; a reader that has gone is none.

    Raises:
        PatchcaptionError: stdout cannot be written.
    """
    try:
        with stdout_errors():
            sys.stdout.flush()
    except BrokenPipeError:
        discard(sys.stdout)
    except PatchcaptionError:
        discard(sys.stdout)
        raise
    finally:
        try:
            sys.stderr.flush()
        except OSError:
            discard(sys.stderr)


def discard(stream: TextIO) -> None:
    """Let what a stream still holds go nowhere, or Python would fail on it at its end."""
    with suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


def show(line: object, write: Callable[[str], object] = print) -> None:
    """Print a line of results.

    Args:
        line: printed as `printable` says.
        write: prints it; on stdout by default.

    Raises:
        PatchcaptionError: stdout cannot be written.
        BrokenPipeError: its reader has gone.
    """
    with stdout_errors():
        write(printable(str(line)))


@contextmanager
def stdout_errors() -> Iterator[None]:
    """Turn a failure to print into one line; a reader that left is BrokenPipeError."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise PatchcaptionError(f"stdout: cannot be written: {error.strerror or error}") from None


def printable(text: str) -> str:
    """Return a text with escapes for what terminals act on, and for halves of characters, which no encoding has."""
    return _CONTROLS.sub(lambda found: ascii(found[0])[1:-1], text)


def one_line(text: str) -> str:
    """Return a text of somebody else's with escapes for the ends of lines in it."""
    return text.replace("\n", "\\n")


def _unusable_stream(number: int) -> TextIO:
    """Give a descriptor to the null device, opened the wrong way round; return the stream that fails on it."""
    opened = os.open(os.devnull, os.O_RDONLY if number else os.O_WRONLY)
    if opened != number:
        os.dup2(opened, number)
        os.close(opened)
    raw = io.FileIO(number, "w" if number else "r", closefd=False)
    return io.TextIOWrapper(io.BufferedWriter(raw) if number else io.BufferedReader(raw))


def _is_open(number: int) -> bool:
    try:
        os.fstat(number)
    except OSError:
        return False
    return True
