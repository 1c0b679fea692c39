"""Exit codes of the command line, and its one-line errors."""

from __future__ import annotations

import sys

DONE = 0
UNUSABLE = 1
"""A bundle, backend or output file that cannot be used."""
BAD_INPUT = 2
"""A mistake on the command line or in what it names: an image, a region."""
INTERRUPTED = 130


def fail(message: str, code: int) -> int:
    """Print an error as one line on stderr; return its exit code."""
    print(f"patchcaption: error: {' '.join(message.split())}", file=sys.stderr)
    return code
