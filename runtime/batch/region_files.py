"""Regions of many images in one file, read a piece at a time.

A new form is a function and a line in `READERS`.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from runtime.batch.extras import import_extra
from runtime.errors import RegionError
from runtime.regions.inputs.entries import DETECTION_KEYS
from runtime.regions.inputs.results import is_results
from runtime.regions.serialization import parse_json

IMAGE_KEYS = ("image", "file_name", "image_path", "image_name", "filename", "path", "file", "image_id")
"""Keys that hold the name of a region's image, or the number that is its file's name; the first one counts."""
_COLUMNS = ("kind", "xyxy", "boxes", "masks", "segments_info")
"""Keys of an object that is a region, or what a detector found on one image."""
_PREVIEW_BYTES = 2**16
_ROWS_AT_ONCE = 1024


class RegionEntry(NamedTuple):
    """Some regions of an image.

    Attributes:
        image: its path or the end of it, with its ending or without; None for regions of every image.
        regions: in a form that `runtime.regions.detections.as_rows` takes; none of an image that has no regions.
    """

    image: str | None
    regions: Any


def read_regions(file: Path) -> Iterator[RegionEntry]:
    """Yield the regions in a file, in the order that they are in.

    Args:
        file: in one of the forms that docs/batch.md lists.

    Raises:
        RegionError: it cannot be read, or is in no such form; it says which line or row.
    """
    read = READERS.get(file.suffix.lower())
    if read is None:
        raise RegionError(f"{file}: expected regions in a file that ends in {', '.join(READERS)}, got {file.suffix!r}")
    try:
        file.stat()
    except ValueError as error:  # a name with a zero in it, or that no file system encodes
        raise RegionError(f"{str(file)!r}: cannot be read: {error}") from None
    except OSError:  # which reading it tells of
        pass
    try:
        yield from read(file)
    except FileNotFoundError:
        raise RegionError(f"{file}: no such file") from None
    except OSError as error:
        raise RegionError(f"{file}: cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise RegionError(f"{file}: expected text in UTF-8: {error}") from None


def _json_lines(file: Path) -> Iterator[RegionEntry]:
    with file.open("rb") as lines:
        for number, line in enumerate(lines):
            if line.strip():
                where = f"{file}: line {number + 1}"
                yield from _entries_of(parse_json(line, where), where)


def _csv(file: Path) -> Iterator[RegionEntry]:
    with file.open(newline="", encoding="utf-8") as lines:
        try:
            for number, row in enumerate(csv.DictReader(lines)):
                where = f"{file}: row {number}"
                if None in row or None in row.values():
                    raise RegionError(f"{where}: expected as many values as the head has columns")
                yield from _entries_of({key: _csv_value(key, value) for key, value in row.items()}, where)
        except csv.Error as error:
            raise RegionError(f"{file}: expected CSV: {error}") from None


def _csv_value(key: str, value: str) -> Any:
    """Return what a text in a table stands for: a number or JSON where it is one, but for names."""
    if key in IMAGE_KEYS or "name" in key:
        return value
    try:
        return json.loads(value)
    except ValueError:
        return value


def _parquet(file: Path) -> Iterator[RegionEntry]:
    parquet = import_extra("pyarrow.parquet", "batch", f"{file}")
    arrow = import_extra("pyarrow", "batch", f"{file}")
    number = 0
    try:
        with parquet.ParquetFile(file) as table:
            for batch in table.iter_batches(_ROWS_AT_ONCE):
                for row in batch.to_pylist():
                    yield from _entries_of(_without_nulls(row), f"{file}: row {number}")
                    number += 1
    except (arrow.ArrowException, arrow.ArrowInvalid) as error:
        raise RegionError(f"{file}: expected Parquet: {error}") from None


def _without_nulls(value: Any) -> Any:
    """Return a row of a table without the fields that only other rows have."""
    if isinstance(value, dict):
        return {name: _without_nulls(one) for name, one in value.items() if one is not None}
    return [_without_nulls(one) for one in value] if isinstance(value, list) else value


def _json(file: Path) -> Iterator[RegionEntry]:
    with file.open("rb") as opened:
        start = opened.read(_PREVIEW_BYTES).removeprefix(b"\xef\xbb\xbf").lstrip()[:1]
    if start == b"[":
        return _json_list(file)
    if start == b"{":
        keys = _keys(file)
        if keys & set(_COLUMNS):
            return iter([RegionEntry(None, parse_json(file.read_bytes(), str(file)))])
        return _coco(file) if "annotations" in keys else _by_image(file)
    raise RegionError(f"{file}: expected a JSON list or object")


def _json_list(file: Path) -> Iterator[RegionEntry]:
    """Yield the regions of a list: each of an image that it names; or if the first names none, of every image."""
    entries = _items(file, "item")
    first = next(entries, None)
    if first is None:
        yield RegionEntry(None, [])
        return
    if _image_key(first) is None:
        yield RegionEntry(None, [first, *entries])
        return
    yield from _entries_of(first, f"{file}: row 0")
    for number, entry in enumerate(entries, start=1):
        yield from _entries_of(entry, f"{file}: row {number}")


def _by_image(file: Path) -> Iterator[RegionEntry]:
    """Yield the regions of an object whose keys are the names of images."""
    with _parsed(file) as (ijson, opened):
        for name, value in ijson.kvitems(opened, "", use_float=True):
            if not isinstance(value, (list, Mapping)):
                raise RegionError(
                    f'{file}: expected a data set with "annotations", or an object of the regions of each image by its '
                    f"name, got {type(value).__name__} as {name!r}"
                )
            yield RegionEntry(name, value if isinstance(value, list) or is_results(value) else [value])


def _coco(file: Path) -> Iterator[RegionEntry]:
    """Yield the annotations of a data set in COCO's form, and its images without any."""
    classes = {entry.get("id"): entry.get("name") for entry in _objects(file, "categories")}
    names = {entry.get("id"): str(entry.get("file_name", "")) for entry in _objects(file, "images")}
    for name in names.values():
        yield RegionEntry(name, [])
    for number, annotation in enumerate(_objects(file, "annotations")):
        image = names.get(annotation.get("image_id"))
        if image is None:
            raise RegionError(f"{file}: annotations: row {number}: no image has the id {annotation.get('image_id')!r}")
        class_name = classes.get(annotation.get("category_id"))
        yield RegionEntry(image, [annotation if class_name is None else {"category_name": class_name, **annotation}])


READERS: Mapping[str, Callable[[Path], Iterator[RegionEntry]]] = {
    ".json": _json,
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".csv": _csv,
    ".parquet": _parquet,
}
"""What reads a file, by the ending of its name."""


def _entries_of(row: object, where: str) -> Iterator[RegionEntry]:
    """Yield the regions of a row that names its image: nothing for one that tells only why there is no region.

    Raises:
        RegionError: it does not.
    """
    key = _image_key(row)
    if key is None or not isinstance(row, Mapping):
        got = ", ".join(map(str, row)) or "none" if isinstance(row, Mapping) else type(row).__name__
        raise RegionError(f'{where}: expected an object with the name of an image as "image", got {got}')
    image = str(row[key])
    said = {name: value for name, value in row.items() if name != key and value is not None and value != ""}
    for name in ("regions", "detections"):
        if name in said:
            yield RegionEntry(image, _json_value(said[name], where))
            return
    if "region" in said:
        region = _json_value(said["region"], where)
        about = {name: said[name] for name in DETECTION_KEYS if name in said}
        yield RegionEntry(image, [{**region, **about} if isinstance(region, Mapping) else region])
    elif is_results(said):
        yield RegionEntry(image, said)
    elif "error" not in said:
        yield RegionEntry(image, [said] if said else [])


def _json_value(value: Any, where: str) -> Any:
    """Return a value, or where it is a text the JSON in it, as tables have it; of a list, of each of its entries."""
    if isinstance(value, str):
        return parse_json(value, where)
    if isinstance(value, list):
        return [parse_json(entry, where) if isinstance(entry, str) else entry for entry in value]
    return value


def _image_key(row: object) -> str | None:
    if not isinstance(row, Mapping):
        return None
    return next((key for key in IMAGE_KEYS if _is_name(row.get(key), may_be_number=key == "image_id")), None)


def _is_name(value: object, may_be_number: bool) -> bool:
    is_number = may_be_number and isinstance(value, int) and not isinstance(value, bool)
    return is_number or (isinstance(value, str) and value != "")


def _objects(file: Path, part: str) -> Iterator[Mapping[str, Any]]:
    for entry in _items(file, f"{part}.item"):
        if not isinstance(entry, Mapping):
            raise RegionError(f"{file}: {part}: expected a list of dictionaries, as COCO has it")
        yield entry


def _items(file: Path, prefix: str) -> Iterator[Any]:
    with _parsed(file) as (ijson, opened):
        yield from ijson.items(opened, prefix, use_float=True)


def _keys(file: Path) -> set[str]:
    """Return the keys of the object that a file holds."""
    with _parsed(file) as (ijson, opened):
        return {value for prefix, event, value in ijson.parse(opened) if event == "map_key" and not prefix}


@contextmanager
def _parsed(file: Path) -> Iterator[tuple[Any, BinaryIO]]:
    """Open a file for ijson, which reads JSON of any size a piece at a time."""
    ijson = import_extra("ijson", "batch", f"{file}")
    with file.open("rb") as opened:
        if opened.peek(3)[:3] == b"\xef\xbb\xbf":
            opened.seek(3)
        try:
            yield ijson, opened
        except (ijson.JSONError, UnicodeDecodeError) as error:
            what, *around = str(error).splitlines()
            near = f" near {around[0].strip()}" if around else ""
            raise RegionError(f"{file}: expected JSON: {what.rstrip('.')}{near}") from None
