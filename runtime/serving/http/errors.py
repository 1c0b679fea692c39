"""Errors of requests: a status, and one line."""

from __future__ import annotations

import json
from collections.abc import Mapping
from types import MappingProxyType

from starlette.responses import JSONResponse

from runtime.errors import PatchcaptionError
from runtime.serving.limits import line_of

_NONE: Mapping[str, str] = MappingProxyType({})

TOO_SLOW, GONE, TOO_LARGE, WRONG_TYPE, NOT_OURS, BUSY, LATE, NO_ROOM = 408, 404, 413, 415, 421, 429, 503, 507


class RequestError(PatchcaptionError):
    """Why a request is not answered.

    Attributes:
        status: of HTTP.
        headers: that the answer has beside it.
    """

    def __init__(self, status: int, message: str, headers: Mapping[str, str] = _NONE) -> None:
        super().__init__(message)
        self.status, self.headers = status, headers


class JsonAnswer(JSONResponse):
    """Values as JSON in ASCII: half a character in somebody's class name has no other encoding."""

    def render(self, content: object) -> bytes:
        """Return the JSON."""
        return json.dumps(content, allow_nan=False, separators=(",", ":")).encode("ascii")


def error_answer(error: RequestError) -> JsonAnswer:
    """Return the answer that says why there is no other."""
    return JsonAnswer({"error": line_of(error)}, error.status, dict(error.headers))
