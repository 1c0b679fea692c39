"""Connections that do not wait for ever: for the head of a request, or for a client that reads no answer."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD_SECONDS = 10.0
"""In which the head of a request must be there, from a connection's or the head's first byte."""
_UNREAD_SECONDS = 30
"""In which a client must take what was sent to it."""


class PatientProtocol(H11Protocol):
    """HTTP/1.1 whose connections end if the head of a request does not come.

    The body's time is the door's business, and the pause between two requests uvicorn's own (`timeout_keep_alive`).
    """

    _waiting: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._wait_for_head()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE:  # the head is there
            self._stop_waiting()
        elif self._waiting is None and self.conn.trailing_data[0]:
            self._wait_for_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        super().connection_lost(exc)

    def _wait_for_head(self) -> None:
        self._waiting = self.loop.call_later(HEAD_SECONDS, self.transport.abort)

    def _stop_waiting(self) -> None:
        if self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None


def bind(host: str, port: int) -> socket.socket:
    """Return a socket that listens on an address once it is asked to.

    Args:
        port: 0 for any that is free.

    Raises:
        OSError: the address is not this machine's, or is taken.
    """
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    family, kind, protocol, _, address = found
    bound = socket.socket(family, kind, protocol)  # asyncio sets TCP_NODELAY on those alone that say they are TCP's
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        user_timeout: Any = getattr(socket, "TCP_USER_TIMEOUT", None)  # not on every system; inherited by connections
        if user_timeout is not None:
            bound.setsockopt(socket.IPPROTO_TCP, user_timeout, _UNREAD_SECONDS * 1000)
        bound.bind(address)
    except OSError:
        bound.close()
        raise
    return bound
