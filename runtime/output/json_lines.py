"""Writes the captions of streams as JSON lines."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager

from runtime.output.as_json import frame_as_json
from runtime.output.recording import RecordFile
from runtime.system.outputs import Note, Output
from runtime.video.stream import FrameCaptions


@contextmanager
def json_lines(output: Output, note: Note) -> Iterator[JsonLines]:
    """Write one JSON object a frame: number, seconds, dropped, latency_ms and captions.

    Args:
        note: as in `Output.growing`.
    """
    with output.growing(note) as file:
        yield JsonLines(RecordFile(output, file))


class JsonLines:
    """A file of one JSON object a frame."""

    def __init__(self, file: RecordFile) -> None:
        self._file = file

    def add(self, described: FrameCaptions, source: str | None = None) -> None:
        """Append a frame; see `Recorder.add`.

        Args:
            source: where it comes from, for a file of several sources.
        """
        named = {} if source is None else {"source": source}
        self._file.append(json.dumps(named | frame_as_json(described)) + "\n")
