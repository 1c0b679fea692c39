"""Writes the captions of streams as a table of comma-separated values (RFC 4180), one row a region and frame."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

from runtime.output.as_json import region_as_json
from runtime.output.recording import RecordFile
from runtime.results import Caption
from runtime.system.outputs import Note, Output
from runtime.video.stream import FrameCaptions

COLUMNS = (
    "source",
    "frame",
    "seconds",
    "region",
    "kind",
    "x1",
    "y1",
    "x2",
    "y2",
    "caption",
    "score",
    "reused",
    "error",
)
"""Of each row. Corners are those of boxes, in pixels; fields that a row does not have are empty."""


_FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""How texts begin that programs for tables take for a formula, and some run."""
_CONTROLS = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
"""Control characters but tabs and ends of lines: a table may go to a terminal, and few readers take a zero."""


@contextmanager
def csv_table(output: Output, note: Note) -> Iterator[CsvTable]:
    """Write one row a region and frame, and for a frame without captions, one with the reason.

    A text that programs for tables would take for a formula has an apostrophe before it, as they show texts; control
    characters are escapes.

    Args:
        note: as in `Output.growing`.
    """
    with output.growing(note) as file:
        yield CsvTable(RecordFile(output, file))


class CsvTable:
    """A table with the names of `COLUMNS` in its first row. The rows of a frame come together."""

    def __init__(self, file: RecordFile) -> None:
        self._file = file

    def add(self, described: FrameCaptions, source: str | None = None) -> None:
        """Append the rows of a frame; see `Recorder.add`.

        Args:
            source: where it comes from.
        """
        rows = list[Mapping[str, object]]()
        if not self._file.has_content:
            rows.append(dict(zip(COLUMNS, COLUMNS, strict=True)))
        frame: dict[str, object] = {
            "source": None if source is None else _harmless(source),
            "frame": described.frame.number,
            "seconds": described.frame.seconds,
        }
        if described.error is not None:
            rows.append(frame | {"error": _harmless(described.error)})
        rows.extend(frame | _region_fields(*numbered) for numbered in enumerate(described.captions))
        self._file.append(_as_text(rows))


def _region_fields(number: int, caption: Caption) -> dict[str, object]:
    region = region_as_json(caption.region) or {}
    corners = region.get("xyxy") if region.get("kind") == "box" else None
    return {
        "region": number,
        "kind": region.get("kind"),
        **dict(zip(("x1", "y1", "x2", "y2"), corners if isinstance(corners, (list, tuple)) else (), strict=False)),
        "caption": _harmless(caption.text),
        "score": caption.score,
        "reused": str(caption.reused).lower(),
        "error": None if caption.error is None else _harmless(caption.error),
    }


def _harmless(text: str) -> str:
    """Return a text that is a text in every program that opens the table."""
    escaped = _CONTROLS.sub(lambda found: ascii(found[0])[1:-1], text)
    return f"'{escaped}" if escaped.startswith(_FORMULA) else escaped


def _as_text(rows: Iterable[Mapping[str, object]]) -> str:
    text = io.StringIO(newline="")
    csv.DictWriter(text, COLUMNS).writerows(rows)
    return text.getvalue()
