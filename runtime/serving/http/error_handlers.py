"""Has every error answered with a status and one line."""

from __future__ import annotations

from typing import cast

from fastapi import FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import compile_path

from runtime.errors import ImageError, OptionError, PatchcaptionError, RegionError
from runtime.serving.http.errors import TOO_LARGE, RequestError, error_answer
from runtime.serving.limits import OverLimitError

_MISSING, _WRONG_METHOD = 404, 405


def add_error_handlers(app: FastAPI) -> None:
    """Answer what the calls raise, and what the router does."""

    async def known(_: Request, error: Exception) -> Response:
        return error_answer(cast(RequestError, error))

    async def bad_input(_: Request, error: Exception) -> Response:
        return error_answer(RequestError(400, str(error)))

    async def too_large(_: Request, error: Exception) -> Response:
        return error_answer(RequestError(TOO_LARGE, str(error)))

    async def unusable(_: Request, error: Exception) -> Response:
        return error_answer(RequestError(409, str(error)))

    async def refused(request: Request, error: Exception) -> Response:
        return error_answer(_refusal(app, request.scope["path"], cast(HTTPException, error)))

    async def failed(_: Request, error: Exception) -> Response:
        line = f"{type(error).__name__}, an error of the service itself: see its log"
        return error_answer(RequestError(500, line, {"Connection": "close"}))  # which the server then does

    app.add_exception_handler(RequestError, known)
    app.add_exception_handler(OverLimitError, too_large)
    for kind in (ImageError, OptionError, RegionError):
        app.add_exception_handler(kind, bad_input)
    app.add_exception_handler(PatchcaptionError, unusable)
    app.add_exception_handler(HTTPException, refused)
    app.add_exception_handler(Exception, failed)


def _refusal(app: FastAPI, path: str, error: HTTPException) -> RequestError:
    """Return in words what the router raised."""
    name = repr(path[:80])
    if error.status_code == _MISSING:
        return RequestError(_MISSING, f"{name}: there is no such call; GET /openapi.json lists them")
    if error.status_code == _WRONG_METHOD:
        methods = ", ".join(_methods(app, path)) or "GET, HEAD"  # of the page
        return RequestError(_WRONG_METHOD, f"{name}: expected {methods}", {"Allow": methods})
    return RequestError(error.status_code, str(error.detail), error.headers or {})


def _methods(app: FastAPI, path: str) -> list[str]:
    """Return the methods of all calls of a path, where the router knows those of the first."""
    calls = app.openapi()["paths"].items()
    found = {method.upper() for template, call in calls if compile_path(template)[0].match(path) for method in call}
    return sorted(found | {"HEAD"} if "GET" in found else found)
