"""The bodies of requests: an image with regions and options, as a form, as JSON, or the image alone."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from python_multipart import FormParser
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import File, parse_options_header

from runtime.errors import RegionError
from runtime.serving.http.errors import WRONG_TYPE, RequestError
from runtime.serving.limits import WHOLE_IMAGE, read_bounded_json

_MAX_PARTS = 16
"""Of a form: it has three."""
_PLAIN = ("application/octet-stream", "binary/octet-stream")


@dataclass(frozen=True)
class Asked:
    """What a request asks for.

    Attributes:
        image: an encoded image; None where the request has none.
        regions: a JSON value, any form of the regions of one image.
        options: those of `Captioner.describe`.
        is_small: whether the body has but a few kilobytes.
    """

    image: bytes | None = None
    regions: Any = field(default_factory=lambda: WHOLE_IMAGE)
    options: Mapping[str, Any] = field(default_factory=dict)
    is_small: bool = False

    def require_image(self) -> bytes:
        """Return the image.

        Raises:
            RequestError: there is none.
        """
        if not self.image:
            raise RequestError(400, 'body: expected an "image", got none')
        return self.image


def read_body(content_type: str, body: bytes) -> Asked:
    """Return what the body of a request asks for.

    Raises:
        RequestError: it is of another type, or not what its type says.
    """
    kind, parameters = parse_options_header(content_type)
    name = kind.decode("latin-1").lower()
    if name == "multipart/form-data":
        return _asked(_form(parameters.get(b"boundary"), body))
    if name == "application/json" or name.endswith("+json"):
        return read_json(body)
    if name.startswith("image/") or name in _PLAIN:
        return Asked(bytes(body))
    raise RequestError(
        WRONG_TYPE, f"Content-Type {name[:80]!r}: expected multipart/form-data, application/json or an image's"
    )


def read_json(body: bytes) -> Asked:
    """Return what a body of JSON asks for.

    Raises:
        RequestError: it is no JSON object with the keys that are taken.
    """
    values = _json("body", body)
    if not isinstance(values, dict):
        raise RequestError(400, f"body: expected a JSON object, got {type(values).__name__}")
    if "image" in values:
        values["image"] = _base64(values["image"])
    return _asked(values)


def _asked(values: dict[str, Any]) -> Asked:
    names = ("image", "regions", "options")
    unknown = sorted(set(values) - set(names))
    if unknown:
        raise RequestError(400, f"body: expected {', '.join(names)}, got {', '.join(unknown)[:80]!r}")
    options = values.get("options")
    if options is not None and not isinstance(options, dict):
        raise RequestError(400, f"options: expected a JSON object, got {type(options).__name__}")
    return Asked(values.get("image"), values.get("regions", WHOLE_IMAGE), options or {})


def _json(name: str, text: bytes) -> Any:
    try:
        return read_bounded_json(name, text)
    except RegionError as error:
        raise RequestError(400, str(error)) from None


def _base64(value: object) -> bytes:
    if not isinstance(value, str):
        raise RequestError(400, f"image: expected base64, got {type(value).__name__}")
    try:
        return base64.b64decode(value.encode("ascii"), validate=True)
    except (ValueError, binascii.Error):  # a ValueError of what is not ASCII
        raise RequestError(400, "image: expected base64 (RFC 4648, section 4) of an encoded image") from None


def _form(boundary: bytes | None, body: bytes) -> dict[str, Any]:
    """Return the parts of a form by name; those that are not the image hold JSON."""
    if not boundary:
        raise RequestError(400, "Content-Type: expected a boundary beside multipart/form-data, got none")
    parts: list[tuple[str, bytes]] = []
    ends: list[bool] = []

    def add(name: bytes | None, value: bytes | None) -> None:
        if len(parts) == _MAX_PARTS:
            raise RequestError(400, f"body: expected at most {_MAX_PARTS} parts")
        parts.append(((name or b"").decode("utf-8", "replace"), value or b""))

    def add_file(file: File) -> None:
        file.file_object.seek(0)
        add(file.field_name, file.file_object.read())

    try:
        parser = FormParser(
            "multipart/form-data",
            lambda part: add(part.field_name, part.value),
            add_file,
            lambda: ends.append(True),
            boundary=boundary,
            config={"MAX_MEMORY_FILE_SIZE": len(body) + 1, "MAX_BODY_SIZE": float("inf")},
        )
        parser.write(body)
        parser.finalize()
    except FormParserError as error:
        raise RequestError(400, f"body: expected multipart/form-data: {error}") from None
    if not ends:
        raise RequestError(400, "body: expected multipart/form-data, got some without its last boundary")
    return {name: value if name == "image" else _json(name, value) for name, value in parts}
