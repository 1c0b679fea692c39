"""What no well-behaved client sends: bytes on a socket, and the answers to them."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from email.message import Message
from email.parser import BytesHeaderParser
from urllib.parse import urlsplit

HOST = b"Host: 127.0.0.1\r\n"
_SECONDS = 60.0
"""For an answer: longer than any takes."""


@dataclass(frozen=True)
class Answer:
    """An answer of HTTP."""

    status: int
    headers: Message
    body: bytes

    @property
    def error(self) -> str:
        """The one line that a refusal consists of."""
        assert self.headers["content-type"] == "application/json", self
        answer = json.loads(self.body)
        assert set(answer) == {"error"}
        assert answer["error"]
        assert answer["error"].splitlines() == [answer["error"]]
        return str(answer["error"])


@contextmanager
def connected(url: str, receive_buffer: int | None = None) -> Iterator[socket.socket]:
    """Yield a connection to the service.

    Args:
        receive_buffer: bytes that wait at the client until it reads.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as connection:
        if receive_buffer is not None:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        connection.settimeout(_SECONDS)
        connection.connect((urlsplit(url).hostname, urlsplit(url).port))
        yield connection


def ask(url: str, request: bytes, count: int = 1) -> list[Answer]:
    """Return so many answers to some bytes, or those that come until the service closes the connection."""
    answers: list[Answer] = []
    with connected(url) as connection:
        with suppress(OSError):  # it was refused before all was sent
            connection.sendall(request)
        received = b""
        while len(answers) < count:
            answer, received = read_answer(connection, received)
            if answer is None:
                break
            answers.append(answer)
    return answers


def read_answer(connection: socket.socket, received: bytes = b"") -> tuple[Answer | None, bytes]:
    """Return the next answer, or None where the service has closed the connection, and what came after it.

    Args:
        received: what was read before.
    """
    while b"\r\n\r\n" not in received:
        piece = _receive(connection)
        if not piece:
            assert not received, f"the connection ended after {received!r}"
            return None, b""
        received += piece
    head, _, received = received.partition(b"\r\n\r\n")
    headers = BytesHeaderParser().parsebytes(head.partition(b"\r\n")[2] + b"\r\n\r\n")
    length = int(headers["content-length"] or 0)
    while len(received) < length:
        piece = _receive(connection)
        assert piece, "the connection ended within an answer"
        received += piece
    protocol, status, *_ = head.split(b" ")
    assert protocol == b"HTTP/1.1", head
    return Answer(int(status), headers, received[:length]), received[length:]


def _receive(connection: socket.socket) -> bytes:
    try:
        return connection.recv(65536)
    except ConnectionResetError:
        return b""
