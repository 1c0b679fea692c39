"""Exit codes of the command line, and its one-line errors and notes."""

from __future__ import annotations

import sys

from runtime.system.standard_streams import discard, printable

DONE = 0
UNUSABLE = 1
"""A bundle, backend or output file that cannot be used."""
BAD_INPUT = 2
"""A mistake on the command line or in what it names: an image, a region."""
INTERRUPTED = 130


def fail(message: str, code: int) -> int:
    """Print an error as one line on stderr; return its exit code."""
    _say(f"error: {message}")
    return code


def note(message: str) -> None:
    """Print what the user should know, as one line on stderr."""
    _say(f"note: {message}")


def _say(message: str) -> None:
    try:
        print(f"patchcaption: {printable(' '.join(message.split()))}", file=sys.stderr, flush=True)
    except OSError:  # nobody is there to be told
        discard(sys.stderr)
