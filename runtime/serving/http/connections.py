"""Connections that do not wait for ever: for the head of a request, or for a client that reads no answer."""

from __future__ import annotations

import asyncio
import resource
import socket
import sys
from typing import Any, cast

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from runtime.serving.http.errors import RequestError, error_answer

HEAD_SECONDS = 10.0
"""In which the head of a request must be there, from a connection's or the head's first byte."""
UNREAD_SECONDS = 30.0
"""In which a client must take what was sent to it."""
_PIECE = 2**14
"""Bytes that are looked at together: of a head no more is beyond its limit, and many small chunks halt nobody else."""
_HEAD_TOO_LARGE = 431
_LAST_PORT = 65_535
_OWN_FILES = 128
"""Descriptors that are not for connections."""


class PatientProtocol(H11Protocol):
    """HTTP/1.1 whose connections end if the head of a request does not come, or nobody takes the answer.

    The body's time is the door's business, and the pause between two requests uvicorn's own (`timeout_keep_alive`).
    Where too many connections are open, the one that has asked nothing for longest makes room.

    Args:
        most: connections that are open at a time.
    """

    _timer: asyncio.TimerHandle | None = None
    _write_timer: asyncio.TimerHandle | None = None
    _idle_since = 0.0

    def __init__(self, *args: Any, most: int, **keywords: Any) -> None:
        super().__init__(*args, **keywords)
        self._most = most

    @property
    def is_idle(self) -> bool:
        """Whether it asks nothing: the head of its next request is not there."""
        return self.cycle is None or self.cycle.response_complete

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        transport.max_size = _PIECE  # type: ignore[attr-defined]  # what asyncio's own transports read at once
        self._idle_since = self.loop.time()
        self._make_room()
        self._wait_for_head()

    def data_received(self, data: bytes) -> None:
        for start in range(0, len(data), _PIECE):
            if not self.transport.is_closing():
                super().data_received(data[start : start + _PIECE])
        if self.conn.their_state is not h11.IDLE:  # the head is there
            self._stop_waiting()
        elif self._timer is None and self.conn.trailing_data[0]:
            self._wait_for_head()

    def eof_received(self) -> bool:  # type: ignore[override]
        """Answer a client that only says that it sends no more: its request is whole."""
        is_asked = not self.is_idle and not self.cycle.more_body
        if is_asked:
            self.cycle.keep_alive = False
        return is_asked  # else the transport closes itself

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        self._stop_writing()
        super().connection_lost(exc)

    def on_response_complete(self) -> None:
        self._idle_since = self.loop.time()
        super().on_response_complete()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._write_timer = self.loop.call_later(UNREAD_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        self._stop_writing()
        super().resume_writing()

    def send_400_response(self, msg: str) -> None:
        """Say in one line of JSON what is no HTTP, unless an answer has begun; then end the connection."""
        reason, hint = sys.exc_info()[1] or msg, getattr(sys.exc_info()[1], "error_status_hint", 400)
        if self.cycle is not None:
            self.cycle.disconnected = True  # so that it says nothing more
            self.cycle.message_event.set()
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            line = f"not HTTP/1.1: {reason}".partition(": bytearray(")[0]  # which is what came
            self._answer(RequestError(hint if hint == _HEAD_TOO_LARGE else 400, line, {"Connection": "close"}))
        self.transport.close()

    def _answer(self, error: RequestError) -> None:
        answer = error_answer(error)
        head = h11.Response(status_code=answer.status_code, headers=answer.raw_headers)
        for event in (head, h11.Data(data=bytes(answer.body)), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event) or b"")

    def _make_room(self) -> None:
        if len(self.connections) <= self._most:
            return
        others = [cast(PatientProtocol, one) for one in self.connections if one is not self]
        idle = (one for one in others if one.is_idle)
        ended = min(idle, key=lambda one: one._idle_since, default=self)
        self.connections.discard(ended)  # it hears of its end after this
        ended.transport.abort()

    def _wait_for_head(self) -> None:
        self._timer = self.loop.call_later(HEAD_SECONDS, self.transport.abort)

    def _stop_waiting(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _stop_writing(self) -> None:
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None


def most_connections(wanted: int) -> int:
    """Return how many connections may be open at a time: so many, or what this process has descriptors for."""
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return wanted if files == resource.RLIM_INFINITY else max(1, min(wanted, files - _OWN_FILES))


def bind(host: str, port: int) -> socket.socket:
    """Return a socket that listens on an address once it is asked to.

    Args:
        port: 0 for any that is free.

    Raises:
        OSError: the address is not this machine's, or is taken.
        OverflowError: there is no such port.
    """
    if not 0 <= port <= _LAST_PORT:  # of which the system would take the last 16 bits
        raise OverflowError(f"expected a port from 0 to {_LAST_PORT}")
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    family, kind, protocol, _, address = found
    bound = socket.socket(family, kind, protocol)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # else a body waits 40 ms for its head's receipt
        user_timeout: Any = getattr(socket, "TCP_USER_TIMEOUT", None)  # not on every system; inherited by connections
        if user_timeout is not None:
            bound.setsockopt(socket.IPPROTO_TCP, user_timeout, int(UNREAD_SECONDS * 1000))
        bound.bind(address)
    except OSError:
        bound.close()
        raise
    return bound
