"""The file of captions' scene graphs: JSON lines {"caption": ..., "graph": ...}, which a parser's run appends to.

The first line may say which parser has written them: {"parser": ...}.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from export.checkpoint import CheckpointError

GRAPHS_FILE = "scene_graphs.jsonl"
"""The name that a build looks for."""
PARSER, CAPTION, GRAPH = "parser", "caption", "graph"


def read_graph_lines(path: Path) -> dict[str, str]:
    """Return the graph's text of each caption in a file.

    Raises:
        CheckpointError: it cannot be read, or a line is something else.
    """
    try:
        with path.open(encoding="utf-8") as lines:
            return dict(_entries(lines, path))
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read: {error}") from None


def _entries(lines: Iterator[str], path: Path) -> Iterator[tuple[str, str]]:
    for number, line in enumerate(lines, 1):
        fields = parse_line(line)
        if number == 1 and fields is not None and set(fields) == {PARSER}:
            continue
        if fields is None or not isinstance(fields.get(CAPTION), str) or not isinstance(fields.get(GRAPH), str):
            raise CheckpointError(
                f'{path}: line {number}: expected {{"{CAPTION}": ..., "{GRAPH}": ...}}, got {line[:80].strip()!r}; '
                "patchcaption parse-captions goes on with a file that it has not finished"
            )
        yield fields[CAPTION], fields[GRAPH]


def parse_line(line: str) -> dict[str, Any] | None:
    """Return the JSON object in a line; None if it is none, or holds what is no text."""
    try:
        fields = json.loads(line)
        line.encode()
        json.dumps(fields, ensure_ascii=False).encode()  # half a surrogate pair cannot be written
    except (ValueError, RecursionError):
        return None
    return fields if isinstance(fields, dict) else None


def graph_line(caption: str, graph: str) -> str:
    """Return the line of a caption's graph."""
    return json.dumps({CAPTION: caption, GRAPH: graph}, ensure_ascii=False) + "\n"


def parser_line(identity: str) -> str:
    """Return the line that says which parser writes a file."""
    return json.dumps({PARSER: identity}, ensure_ascii=False) + "\n"
