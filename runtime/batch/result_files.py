"""The files that results are in: Parquet and JSON lines. A new form is a class and a line in `FORMATS`."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from runtime.batch.extras import import_extra
from runtime.batch.image_names import as_unicode
from runtime.batch.rows import CaptionRow
from runtime.errors import OptionError

_ROWS_A_GROUP = 65_536


@dataclass
class RowCounts:
    """How many rows there are, how many without a caption, and the first reason."""

    rows: int = 0
    errors: int = 0
    first_error: str | None = None

    def add(self, rows: int, errors: Sequence[str]) -> None:
        """Count some more rows, with the reasons among them."""
        self.rows += rows
        self.errors += len(errors)
        if self.first_error is None and errors:
            self.first_error = errors[0]


class ResultFormat(Protocol):
    """A form of files of rows. It opens nothing, and can be sent to another process."""

    def encode(self, rows: Sequence[CaptionRow]) -> bytes:
        """Return a file of some rows."""
        ...

    def join(self, parts: Iterable[Path], target: Path) -> RowCounts:
        """Write all rows of some files to one.

        Raises:
            OSError: one of them cannot be read, or the one not be written.
        """
        ...


class JsonLinesFormat:
    """One JSON object a line, with all keys in each."""

    def encode(self, rows: Sequence[CaptionRow]) -> bytes:
        return "".join(json.dumps(asdict(row)) + "\n" for row in rows).encode()

    def join(self, parts: Iterable[Path], target: Path) -> RowCounts:
        counts = RowCounts()
        with target.open("wb") as joined:
            for part in parts:
                with part.open("rb") as lines:
                    for line in lines:
                        joined.write(line)
                        error = json.loads(line)["error"]
                        counts.add(1, [] if error is None else [error])
        return counts


class ParquetFormat:
    """Parquet, the regions as JSON texts and the ids as texts, compressed with zstd."""

    def encode(self, rows: Sequence[CaptionRow]) -> bytes:
        arrow, parquet = _arrow()
        file = io.BytesIO()
        table = arrow.Table.from_pylist([_as_columns(row) for row in rows], schema=_schema(arrow))
        parquet.write_table(table, file, compression="zstd")
        return file.getvalue()

    def join(self, parts: Iterable[Path], target: Path) -> RowCounts:
        arrow, parquet = _arrow()
        counts, waiting = RowCounts(), list[Any]()
        with parquet.ParquetWriter(target, _schema(arrow), compression="zstd") as joined:

            def write() -> None:
                if waiting:
                    joined.write_table(arrow.concat_tables(waiting), row_group_size=_ROWS_A_GROUP)
                    waiting.clear()

            for part in parts:
                table = parquet.read_table(part, schema=_schema(arrow), partitioning=None)
                counts.add(table.num_rows, table["error"].drop_null().to_pylist())
                waiting.append(table)
                if sum(one.num_rows for one in waiting) >= _ROWS_A_GROUP:
                    write()
            write()
        return counts


FORMATS: Mapping[str, ResultFormat] = {
    ".parquet": ParquetFormat(),
    ".jsonl": JsonLinesFormat(),
    ".ndjson": JsonLinesFormat(),
}
"""The form of a file, by the ending of its name."""


def result_format(file: Path) -> ResultFormat:
    """Return the form of a file of results.

    Raises:
        OptionError: its name has another ending.
        PatchcaptionError: what writes it is not installed.
    """
    found = FORMATS.get(file.suffix.lower())
    if found is None:
        raise OptionError(f"--out {file}: expected a file that ends in {', '.join(FORMATS)}")
    found.encode([])
    return found


def _as_columns(row: CaptionRow) -> dict[str, Any]:
    """Return a row as Parquet holds it, which has no halves of characters."""
    columns = asdict(row) | {
        "region": None if row.region is None else json.dumps(row.region),
        "id": None if row.id is None else str(row.id),
    }
    return {name: as_unicode(value) if isinstance(value, str) else value for name, value in columns.items()}


def _schema(arrow: Any) -> Any:
    text, real, whole = arrow.string(), arrow.float64(), arrow.int64()
    types = (text, whole, text, text, real, text, whole, text, real, text)
    return arrow.schema(list(zip(CaptionRow.__dataclass_fields__, types, strict=True)))


def _arrow() -> tuple[Any, Any]:
    return import_extra("pyarrow", "batch", ".parquet"), import_extra("pyarrow.parquet", "batch", ".parquet")
