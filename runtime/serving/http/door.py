"""The door: who may come in, how large a body may be, and how long all of it takes."""

from __future__ import annotations

from collections.abc import Iterable
from time import perf_counter

import anyio
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from runtime.serving.http.admission import Admission, Ticket
from runtime.serving.http.errors import LATE, NOT_OURS, TOO_LARGE, TOO_SLOW, RequestError, error_answer
from runtime.serving.http.metrics import Metrics
from runtime.serving.http.settings import Access, ServiceLimits

_OPEN = ("/", "/healthz", "/readyz")
_OPEN_FOLDER = "/page/"
"""What holds no secret, and asks for the token where the rest wants it."""
LINGER_SECONDS = 2.0
"""For which a client that is refused may go on sending, until it reads why."""
_LEAST_REST = 2**16
"""Bytes that it may send meanwhile, where it has sent as much as a body may have."""
_SAFE = (
    ("X-Content-Type-Options", "nosniff"),
    ("Referrer-Policy", "no-referrer"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
)


class Door:
    """Stands before an application of ASGI, whose requests it reads and whose answers it completes.

    Args:
        app: what is behind it.
    """

    def __init__(self, app: ASGIApp, access: Access, limits: ServiceLimits, queue: Admission, metrics: Metrics) -> None:
        self._app, self._access, self._limits, self._queue, self._metrics = app, access, limits, queue, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request in, or answer why not."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        method, headers = scope["method"], Headers(scope=scope)
        answer = _Answer(send, receive, self._limits.bytes, has_rest=_has_body(headers))
        scope = {
            **scope,
            "method": "GET" if method == "HEAD" else method,  # the server leaves the body out
            "headers": [(name, value) for name, value in scope["headers"] if name != b"range"],  # nothing is so large
        }
        start = perf_counter()
        try:
            with anyio.fail_after(self._limits.seconds):
                await self._enter(headers, scope, receive, answer)
        except RequestError as error:
            await answer.refuse(error, scope, receive)
        except TimeoutError:
            late = f"the answer takes longer than {self._limits.seconds:g} s; ask for fewer regions, or later"
            await answer.refuse(RequestError(LATE, late, {"Retry-After": "1"}), scope, receive)
        finally:
            seconds = perf_counter() - start  # without an answer there was an error of our own
            self._metrics.answered(method, _route_of(scope), answer.status or 500, seconds)

    async def _enter(self, headers: Headers, scope: Scope, receive: Receive, answer: _Answer) -> None:
        if "content-length" in headers and "transfer-encoding" in headers:
            raise RequestError(400, "Content-Length and Transfer-Encoding: expected one of them, got both")
        self._check_host(headers)
        self._check_origin(headers)
        self._check_token(headers, scope)
        if scope["method"] != "POST":
            await self._app(scope, receive, answer.send)
            return
        with self._queue.ticket() as ticket:
            body = await self._read(headers, receive, ticket, answer)
            answer.has_rest = False
            await self._app(scope, _replayed(body, receive), answer.send)

    def _check_host(self, headers: Headers) -> None:
        hosts = headers.getlist("host")
        if len(hosts) != 1 or not self._access.is_own_host(hosts[0]):
            given = ", ".join(hosts)[:80]
            raise RequestError(NOT_OURS, f"Host {given!r} is no name of this service; --allowed-host adds one")

    def _check_origin(self, headers: Headers) -> None:
        """Refuse what a page elsewhere asks for: a browser sends it, whoever may read the answer."""
        origin = headers.get("origin")
        if origin is None or origin in self._access.origins:
            return
        if origin.split("://", 1)[-1].lower() != headers["host"].lower():
            raise RequestError(403, f"Origin {origin[:80]!r} may not ask; --cors allows it")

    def _check_token(self, headers: Headers, scope: Scope) -> None:
        path = scope["path"]
        is_preflight = scope["method"] == "OPTIONS" and "access-control-request-method" in headers
        if self._access.token is None or path in _OPEN or path.startswith(_OPEN_FOLDER) or is_preflight:
            return
        scheme, _, token = headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not self._access.is_token(token.strip()):
            wanted = "expected the header Authorization: Bearer TOKEN"
            raise RequestError(401, wanted, {"WWW-Authenticate": "Bearer"})

    async def _read(self, headers: Headers, receive: Receive, ticket: Ticket, answer: _Answer) -> bytes:
        """Return the body, of which no more is read than the limit."""
        limit, length = self._limits.bytes, headers.get("content-length", "")
        too_large = RequestError(TOO_LARGE, f"body: expected at most {limit} bytes, got {length or 'more'}")
        if length.isdigit() and int(length) > limit:
            raise too_large
        body = bytearray()
        try:
            with anyio.fail_after(self._limits.seconds * 0.9):  # so that it is told from an answer that takes long
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise RequestError(400, "body: the client went away")
                    piece = message.get("body", b"")
                    answer.most_rest = max(answer.most_rest - len(piece), _LEAST_REST)
                    ticket.read(len(piece))
                    body += piece
                    if len(body) > limit:
                        raise too_large
                    if not message.get("more_body", False):
                        return bytes(body)
        except TimeoutError:
            raise RequestError(TOO_SLOW, f"body: not there after {self._limits.seconds * 0.9:g} s") from None


class _Answer:
    """The way back to the client, which knows what it was told.

    Args:
        most_rest: bytes of the rest of a request that are thrown away.
        has_rest: whether there is more of the request than was read; the connection then ends with the answer.

    Attributes:
        status: of the answer; 0 before there is one.
    """

    def __init__(self, send: Send, receive: Receive, most_rest: int, *, has_rest: bool) -> None:
        self._send, self._receive, self.most_rest, self.has_rest = send, receive, most_rest, has_rest
        self.status = 0

    async def send(self, message: Message) -> None:
        """Send a part of the answer on."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = MutableHeaders(scope=message)
            for name, value in _SAFE:
                headers.setdefault(name, value)
            if self.has_rest:
                headers["Connection"] = "close"
        elif self.has_rest and not message.get("more_body", False):
            await self._send({**message, "more_body": True})
            try:
                await self._linger()
            finally:
                await self._send({"type": "http.response.body"})
            return
        await self._send(message)

    async def _linger(self) -> None:
        """Throw away what still comes: a connection that ends before takes the answer with it."""
        left = self.most_rest
        with anyio.move_on_after(LINGER_SECONDS):
            while left > 0:
                message = await self._receive()
                left -= len(message.get("body", b""))
                if not message.get("more_body", False):
                    return

    async def refuse(self, error: RequestError, scope: Scope, receive: Receive) -> None:
        """Answer with an error; an answer that has begun is left as it is, and the server ends the connection."""
        if not self.status:
            await error_answer(error)(scope, receive, self.send)


def _has_body(headers: Headers) -> bool:
    return headers.get("content-length", "0") != "0" or "transfer-encoding" in headers


def _replayed(body: bytes, receive: Receive) -> Receive:
    """Return a channel that gives a body that was read, and then what comes after it."""
    messages: Iterable[Message] = iter([{"type": "http.request", "body": body, "more_body": False}])

    async def replay() -> Message:
        for message in messages:
            return message
        return await receive()

    return replay


def _route_of(scope: Scope) -> str:
    """Return the template of a request's path: the path itself has ids, and what strangers ask for."""
    return getattr(scope.get("route"), "path", "other")
