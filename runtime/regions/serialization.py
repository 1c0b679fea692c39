"""Regions as JSON: `{"kind": "box", "xyxy": [x1, y1, x2, y2], "pool": "mean", "variance": 0.5}`.

The kind is the name of the class in snake case, the other keys are its fields. There are two exceptions: corners are
one list, `xyxy`, and a mask is run-length encoded as COCO does it. A new kind is one line in `FORMS`.
"""

from __future__ import annotations

import json
import re
import reprlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Any, Literal, TypeAlias, get_args, get_origin, get_type_hints

from runtime.errors import RegionError
from runtime.regions import checks, run_lengths
from runtime.regions.boxes import Box, BoxSet, Crop
from runtime.regions.canvas import Region
from runtime.regions.published import PublishedBox, PublishedTrace
from runtime.regions.shapes import Mask, Point, Polygon, PolygonSet, Trace
from runtime.regions.tokens import AttentionHead, Patch, Register, WholeImage

Reader: TypeAlias = Callable[[str, object], Any]
"""A function of the name of a field and of its JSON value that returns the constructor's argument."""

_CORNERS = ("x1", "y1", "x2", "y2")


def to_dict(region: Region) -> dict[str, object]:
    """Return a region as a dictionary of strings, numbers, lists and dictionaries, which JSON can hold.

    Raises:
        RegionError: its class is not one of the kinds of `runtime.regions`.

    Example:
        >>> to_dict(Box(276, 174, 507, 399))
        {'kind': 'box', 'xyxy': [276.0, 174.0, 507.0, 399.0], 'pool': 'mean', 'variance': 0.5}
    """
    kind = kind_of(region)
    form = FORMS.get(kind)
    if form is None or form.cls is not type(region):
        raise RegionError(f"{type(region).__name__} cannot be written as JSON: expected {_join(FORMS)}")
    return {"kind": kind, **form.write(region)}


def from_dict(data: Mapping[str, object]) -> Region:
    """Return the region that `to_dict` wrote, or that was written by hand; fields with a default may be left out.

    Raises:
        RegionError: the kind or a field is unknown, a field is missing or of another type, or the region cannot be.

    Example:
        >>> from_dict({"kind": "point", "x": 350, "y": 330})
        Point(x=350.0, y=330.0)
        >>> from_dict({"kind": "point", "x": 350})
        Traceback (most recent call last):
            ...
        runtime.errors.RegionError: point: expected x and y, got no y
    """
    return _read("region", data, tuple(FORMS))


def regions_from_list(data: object) -> list[Region]:
    """Return the regions of a parsed JSON list.

    Raises:
        RegionError: it is not a list, or one of its regions cannot be read, by its number.

    Example:
        >>> regions_from_list([{"kind": "whole_image"}])
        [WholeImage(pool='cls', variance=1.0)]
    """
    if not isinstance(data, (list, tuple)):
        raise RegionError(f"regions: expected a list, got {_describe(data)}")
    return [_with_location(f"region {number}", from_dict, entry) for number, entry in enumerate(data)]


def regions_from_json(text: str | bytes) -> list[Region]:
    """Return the regions of a JSON list.

    Raises:
        RegionError: it is not JSON or not a list, or one of its regions cannot be read, by its number.

    Example:
        >>> regions_from_json('[{"kind": "patch", "row": 7, "column": 8}]')
        [Patch(row=7, column=8)]
    """
    return regions_from_list(parse_json(text))


def parse_json(text: str | bytes, owner: str = "regions") -> Any:
    """Return the values of a JSON text about regions.

    Args:
        owner: what errors call it.

    Raises:
        RegionError: it is not JSON.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise RegionError(f"{owner}: expected JSON, got some that is nested too deeply") from None
    except ValueError as error:  # also of text that is no UTF-8, and of numbers of thousands of digits
        raise RegionError(f"{owner}: expected JSON: {error}") from None


def kind_of(region: Region) -> str:
    """Return the name of a region's class in snake case.

    Example:
        >>> kind_of(WholeImage())
        'whole_image'
    """
    return _snake_case(type(region).__name__)


def _snake_case(name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()


def _read(owner: str, data: object, kinds: tuple[str, ...]) -> Region:
    if not isinstance(data, Mapping):
        raise RegionError(f'{owner}: expected an object with a "kind", got {_describe(data)}')
    kind = data.get("kind")
    if not isinstance(kind, str) or kind not in kinds:
        raise RegionError(f'{owner}: expected as "kind" {_join(kinds)}, got {_describe(kind)}')
    form = FORMS[kind]
    unknown = [key for key in data if key != "kind" and key not in form.keys]
    if unknown:
        raise RegionError(f"{kind}: expected {_join(form.keys, 'and')}, got {_describe(unknown[0])}")
    missing = [name for name, key in form.keys.items() if key.is_required and name not in data]
    if missing:
        required = [name for name, key in form.keys.items() if key.is_required]
        raise RegionError(f"{kind}: expected {_join(required, 'and')}, got no {missing[0]}")
    return form.build({name: key.read(f"{kind} {name}", data[name]) for name, key in form.keys.items() if name in data})


def _with_location(where: str, read: Callable[[Any], Region], data: object) -> Region:
    try:
        return read(data)
    except RegionError as error:
        raise RegionError(f"{where}: {error}") from None


def _read_number(owner: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise RegionError(f"{owner}: expected a number, got {_describe(value)}")
    return checks.number(owner, value)


def _read_whole_number(owner: str, value: object) -> int:
    return checks.whole_number(owner, _read_number(owner, value))


def _read_bool(owner: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise RegionError(f"{owner}: expected true or false, got {_describe(value)}")
    return value


def _read_numbers(owner: str, value: object, count: int) -> list[float]:
    if not isinstance(value, (list, tuple)) or len(value) != count:
        got = str(len(value)) if isinstance(value, (list, tuple)) else _describe(value)
        raise RegionError(f"{owner}: expected a list of {count} numbers, got {got}")
    return [_read_number(f"{owner}[{index}]", entry) for index, entry in enumerate(value)]


def _read_corners(owner: str, value: object) -> list[float]:
    return _read_numbers(owner, value, 4)


def _read_points(owner: str, value: object) -> list[list[float]]:
    return [_read_numbers(f"{owner}[{index}]", entry, 2) for index, entry in enumerate(_read_list(owner, value))]


def _read_boxes(owner: str, value: object) -> list[Region]:
    def read(entry: object) -> Region:
        return _read("box", entry, ("box", "published_box"))

    return [_with_location(f"{owner}[{index}]", read, entry) for index, entry in enumerate(_read_list(owner, value))]


def _read_polygons(owner: str, value: object) -> list[Region]:
    def read(entry: object) -> Region:
        return _read("polygon", entry, ("polygon",))

    return [_with_location(f"{owner}[{index}]", read, entry) for index, entry in enumerate(_read_list(owner, value))]


def _read_size(owner: str, value: object) -> tuple[int, int]:
    height, width = _read_numbers(owner, value, 2)
    limit = run_lengths.MAX_PIXELS
    if min(height, width) < 1 or max(height, width) > limit:
        raise RegionError(f"{owner}: expected a height and width of 1 to {limit} pixels, got {height:g} and {width:g}")
    return checks.whole_number(owner, height), checks.whole_number(owner, width)


def _read_runs(owner: str, value: object) -> list[int]:
    if isinstance(value, str):
        try:
            return run_lengths.parse_compressed(value)
        except RegionError as error:
            raise RegionError(f"{owner}: {error}") from None
    runs = _read_list(owner, value)
    for run in runs:
        if isinstance(run, bool) or not isinstance(run, int) or not 0 <= run <= run_lengths.MAX_PIXELS:
            raise RegionError(
                f"{owner}: expected whole numbers from 0 to {run_lengths.MAX_PIXELS}, got {_describe(run)}"
            )
    return list(runs)


def _read_list(owner: str, value: object) -> list[Any] | tuple[Any, ...]:
    if not isinstance(value, (list, tuple)):
        raise RegionError(f"{owner}: expected a list, got {_describe(value)}")
    return value


def _word_reader(choices: tuple[str, ...]) -> Reader:
    def read(owner: str, value: object) -> str:
        if not isinstance(value, str) or value not in choices:
            raise RegionError(
                f"{owner}: expected {_join([json.dumps(one) for one in choices])}, got {_describe(value)}"
            )
        return value

    return read


_READERS: dict[object, Reader] = {
    float: _read_number,
    int: _read_whole_number,
    bool: _read_bool,
    tuple[tuple[float, float], ...]: _read_points,
    tuple[Box | PublishedBox, ...]: _read_boxes,
    tuple[Polygon, ...]: _read_polygons,
}
"""Readers of fields by their annotated type; for words (`Literal`) there is `_word_reader`."""


@dataclass(frozen=True)
class _Key:
    """A key of a kind's JSON object."""

    read: Reader
    is_required: bool = True


class _Form:
    """The JSON form of one kind: a key for each field of its dataclass."""

    keys: dict[str, _Key]

    def __init__(self, cls: type[Any]) -> None:
        self.cls = cls
        hints = get_type_hints(cls)
        self.keys = {
            field.name: _Key(_reader_for(hints[field.name]), field.default is MISSING) for field in fields(cls)
        }

    def write(self, region: Any) -> dict[str, object]:
        """Return the region's fields as JSON values."""
        return {field.name: _json_value(getattr(region, field.name)) for field in fields(self.cls)}

    def build(self, values: dict[str, Any]) -> Region:
        """Return the region of values that were read; a field that is missing has its default."""
        return self.cls(**values)


class _CornersForm(_Form):
    """The form of a kind whose corners are one list, ``xyxy``."""

    def __init__(self, cls: type[Any]) -> None:
        super().__init__(cls)
        others = {name: key for name, key in self.keys.items() if name not in _CORNERS}
        self.keys = {"xyxy": _Key(_read_corners), **others}

    def write(self, region: Any) -> dict[str, object]:
        values = super().write(region)
        return {"xyxy": [values.pop(corner) for corner in _CORNERS], **values}

    def build(self, values: dict[str, Any]) -> Region:
        return self.cls(*values.pop("xyxy"), **values)


class _MaskForm(_Form):
    """The form of masks: COCO's run-length encoding."""

    def __init__(self) -> None:
        self.cls = Mask
        self.keys = {"size": _Key(_read_size), "counts": _Key(_read_runs)}

    def write(self, region: Any) -> dict[str, object]:
        return {"size": list(region.array.shape), "counts": run_lengths.encode(region.array)}

    def build(self, values: dict[str, Any]) -> Region:
        try:
            array = run_lengths.decode(values["counts"], *values["size"])
        except RegionError as error:
            raise RegionError(f"mask counts: {error}") from None
        return Mask(array)


def _reader_for(hint: object) -> Reader:
    return _word_reader(get_args(hint)) if get_origin(hint) is Literal else _READERS[hint]


def _json_value(value: object) -> object:
    if isinstance(value, tuple):
        return [_json_value(entry) for entry in value]
    return to_dict(value) if isinstance(value, Region) else value


def _join(names: Iterable[str], last: str = "or") -> str:
    """Return names joined by commas, the last by a word."""
    *others, final = names
    return f"{', '.join(others)} {last} {final}" if others else final


def _describe(value: object) -> str:
    """Return a short text for an error message; of what may be large or nested only its type."""
    is_short = isinstance(value, (str, float)) or (isinstance(value, int) and abs(value) < 10**15)
    return reprlib.repr(value) if is_short else type(value).__name__


FORMS: dict[str, _Form] = {
    _snake_case(form.cls.__name__): form
    for form in (
        _CornersForm(Box),
        _Form(BoxSet),
        _CornersForm(Crop),
        _MaskForm(),
        _Form(Polygon),
        _Form(PolygonSet),
        _Form(Trace),
        _Form(Point),
        _Form(Patch),
        _Form(WholeImage),
        _Form(Register),
        _Form(AttentionHead),
        _Form(PublishedBox),
        _Form(PublishedTrace),
    )
}
"""The form of each kind, by its name."""
