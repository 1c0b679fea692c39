"""The sockets of the service."""

from __future__ import annotations

import socket
from contextlib import closing

from runtime.serving.http.connections import bind


def test_answers_are_sent_at_once() -> None:
    """Head and body are two writes: with Nagle's algorithm the second waits 40 ms for the first one's receipt."""
    with closing(bind("127.0.0.1", 0)) as bound:
        bound.listen()
        with closing(socket.create_connection(bound.getsockname())), closing(bound.accept()[0]) as accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
