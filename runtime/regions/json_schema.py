"""JSON Schema of the JSON that regions are written as."""

from __future__ import annotations

from typing import Any, Literal, get_args, get_origin, get_type_hints

from runtime.regions.boxes import Box
from runtime.regions.published import PublishedBox
from runtime.regions.serialization import FORMS
from runtime.regions.shapes import Polygon

_NUMBER = {"type": "number"}
_POINT = {"type": "array", "items": _NUMBER, "minItems": 2, "maxItems": 2}
_SIDE = {"type": "integer", "minimum": 1}

_OF_KEYS: dict[str, dict[str, Any]] = {
    "xyxy": {"type": "array", "items": _NUMBER, "minItems": 4, "maxItems": 4},
    "size": {"type": "array", "items": _SIDE, "minItems": 2, "maxItems": 2, "description": "height and width"},
    "counts": {
        "description": "COCO's run lengths, as a list or compressed",
        "anyOf": [{"type": "array", "items": {"type": "integer", "minimum": 0}}, {"type": "string"}],
    },
}
"""Of keys that are not fields of the kind's class."""

_OF_TYPES: dict[object, dict[str, Any]] = {
    float: _NUMBER,
    int: {"type": "integer", "minimum": 0},
    bool: {"type": "boolean"},
    tuple[tuple[float, float], ...]: {"type": "array", "items": _POINT},
    tuple[Box | PublishedBox, ...]: {"type": "array", "items": {"type": "object"}, "description": "boxes"},
    tuple[Polygon, ...]: {"type": "array", "items": {"type": "object"}, "description": "polygons"},
}
"""Of fields, by their annotated types; of words (`Literal`) they are listed."""


def region_schemas() -> dict[str, dict[str, Any]]:
    """Return the schema of each kind of region, by the kind's name.

    Example:
        >>> region_schemas()["point"]["required"]
        ['kind', 'x', 'y']
    """
    return {kind: _schema(kind, form) for kind, form in FORMS.items()}


def _schema(kind: str, form: Any) -> dict[str, Any]:
    hints = get_type_hints(form.cls)
    properties = {name: _OF_KEYS.get(name) or _of_type(hints[name]) for name in form.keys}
    return {
        "title": kind,
        "type": "object",
        "properties": {"kind": {"const": kind}, **properties},
        "required": ["kind", *(name for name, key in form.keys.items() if key.is_required)],
    }


def _of_type(hint: object) -> dict[str, Any]:
    return {"enum": list(get_args(hint))} if get_origin(hint) is Literal else _OF_TYPES[hint]
