"""What the user is told while a bundle is fetched, which takes a while: lines on stderr."""

from __future__ import annotations

import sys
from contextlib import suppress

from runtime.system.standard_streams import printable


def note(text: str) -> None:
    """Print a line on stderr, if anybody is there to read it."""
    with suppress(OSError, ValueError, AttributeError):  # closed; None where a program has no console
        print(f"patchcaption: note: {printable(' '.join(text.split()))}", file=sys.stderr, flush=True)
