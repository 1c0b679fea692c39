"""Prints a recording of Rerun as JSON: `python tests/documents/rerun_reading.py out.rrd`.

A program of its own, as importing Rerun starts threads and hooks into forks.
"""

from __future__ import annotations

import base64
import json
import sys
from collections import defaultdict
from importlib import import_module
from typing import Any

rr: Any = import_module("rerun")  # which mypy need not know


def rows(path: str) -> dict[str, dict[int, dict[str, Any]]]:
    """Return what each entity has in each frame: components by their names, and its time in ns as ``seconds``."""
    found: dict[str, dict[int, dict[str, Any]]] = defaultdict(dict)
    for chunk in rr.chunk.RrdReader(path).stream():
        if chunk.is_static:  # properties of the recording
            continue
        batch = chunk.to_record_batch()
        columns = {name: batch.column(name) for name in batch.schema.names if ":" in name}
        if "seconds" in batch.schema.names:
            columns["seconds"] = batch.column("seconds").cast("int64")
        for row, frame in enumerate(batch.column("frame").to_pylist()):
            found[chunk.entity_path][frame] = {name: _plain(name, column[row]) for name, column in columns.items()}
    return found


def _plain(name: str, value: Any) -> Any:
    values = value.as_py()
    return base64.b64encode(bytes(values[0])).decode() if name.endswith(":blob") else values


if __name__ == "__main__":
    print(json.dumps(rows(sys.argv[1])))
