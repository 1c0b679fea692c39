"""The log of a training of the demo checkpoint: a line of JSON for each entry."""

from __future__ import annotations

import json
from typing import Any, TextIO

from export.demo.training_loop import TrainingLog

DECODER_PART = "decoder"
"""What the decoder's entries are called."""


def log_to(file: TextIO) -> TrainingLog:
    """Return a log that writes each entry to the file and to the terminal, as one line of JSON."""

    def log(**entry: Any) -> None:
        line = json.dumps(entry)
        print(line, flush=True)
        file.write(line + "\n")

    return log


def copy_log(earlier: str, log: TrainingLog) -> None:
    """Log the entries of an earlier run but for the decoder's, which is trained again."""
    for line in earlier.splitlines():
        entry = json.loads(line)
        if entry.get("part") != DECODER_PART:
            log(**entry)
