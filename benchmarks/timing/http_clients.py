"""Clients of a service that ask it one thing after another, each on a connection of its own.

They take little of the processor: requests are made before anything is timed, and a client writes and reads bytes.
"""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

_LENGTH = b"content-length: "


@dataclass(frozen=True)
class Step:
    """A request of a session, and what it is answered.

    Attributes:
        call: its name in the report.
        path: "{id}" stands for the id of the session's feature map.
        status: of the right answer.
        texts: of the right captions; None for an answer that has none.
    """

    call: str
    method: str
    path: str
    body: bytes = b""
    content_type: str = ""
    status: int = 200
    texts: tuple[str, ...] | None = None


@dataclass
class Tally:
    """What clients were answered.

    Attributes:
        ms: of each right answer, by the call.
        rejected: answers 429 that say when to come again, by the call.
        wrong: what was no right answer, in words.
        captions: how many were read.
    """

    ms: dict[str, list[float]] = field(default_factory=dict)
    rejected: dict[str, int] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)
    captions: int = 0

    @property
    def answers(self) -> int:
        """Right answers of all calls."""
        return sum(map(len, self.ms.values()))


@dataclass(frozen=True)
class _Reply:
    """An answer, its head in small letters."""

    head: bytes
    body: bytes

    @property
    def status(self) -> int:
        return int(self.head[9:12])

    def has(self, header: bytes) -> bool:
        """Return whether a header begins so."""
        return b"\r\n" + header in self.head


class Client:
    """One client: a connection, and the sessions that it goes through again and again.

    Args:
        tally: where the answers are counted, also those of others.
    """

    def __init__(self, port: int, tally: Tally) -> None:
        self._port, self._tally = port, tally

    async def ask(self, sessions: Sequence[Sequence[Step]], first: int, until: float, most: float) -> None:
        """Go through sessions, from one of them on, until `time.perf_counter` says so; the last one is ended.

        Args:
            most: sessions.
        """
        await self._connect()
        done = 0
        while done < most and time.perf_counter() < until:
            await self._session(sessions[(first + done) % len(sessions)])
            done += 1
        self._writer.close()
        await self._writer.wait_closed()

    async def _session(self, steps: Sequence[Step]) -> None:
        id = ""
        for step in steps:
            if "{id}" in step.path and not id:
                continue  # its image was rejected
            start = time.perf_counter()
            self._writer.write(_request(step, id))
            answer = await _read_reply(self._reader)
            self._count(step, answer, 1000 * (time.perf_counter() - start))
            if step.status == answer.status == 201:
                id = json.loads(answer.body)["id"]
            if answer.has(b"connection: close"):
                self._writer.close()
                await self._connect()

    async def _connect(self) -> None:
        self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port)

    def _count(self, step: Step, answer: _Reply, ms: float) -> None:
        tally, status, body = self._tally, answer.status, answer.body
        if status == 429 != step.status and answer.has(b"retry-after: "):
            tally.rejected[step.call] = tally.rejected.get(step.call, 0) + 1
            return
        texts = _texts(body) if step.texts is not None and status == step.status else None
        if status != step.status or texts != step.texts:
            tally.wrong.append(
                f"{step.call}: expected {step.status} {step.texts}, got {status} {texts or body[:200]!r}"
            )
            return
        tally.ms.setdefault(step.call, []).append(ms)
        tally.captions += len(texts or ())


async def ask_at_once(
    port: int, sessions: Sequence[Sequence[Step]], clients: int, seconds: float = math.inf, most: float = math.inf
) -> Tally:
    """Have so many clients ask for so long, or for so many sessions each; return what they were answered."""
    tally, until = Tally(), time.perf_counter() + seconds
    asking = (Client(port, tally).ask(sessions, number, until, most) for number in range(clients))
    await asyncio.gather(*asking)
    return tally


def json_step(call: str, path: str, values: Mapping[str, object], texts: Sequence[str]) -> Step:
    """Return the request of captions for JSON."""
    return Step(call, "POST", path, json.dumps(values).encode(), "application/json", 200, tuple(texts))


def _request(step: Step, id: str) -> bytes:
    head = f"{step.method} {step.path.replace('{id}', id)} HTTP/1.1\r\nHost: 127.0.0.1\r\n"
    if step.content_type:
        head += f"Content-Type: {step.content_type}\r\n"
    if step.body:
        head += f"Content-Length: {len(step.body)}\r\n"
    return head.encode("ascii") + b"\r\n" + step.body


async def _read_reply(reader: asyncio.StreamReader) -> _Reply:
    """Read an answer, which has a length."""
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    at = head.find(_LENGTH)
    length = int(head[at + len(_LENGTH) : head.index(b"\r", at)]) if at >= 0 else 0
    return _Reply(head, await reader.readexactly(length))


def _texts(body: bytes) -> tuple[str, ...]:
    return tuple(caption["text"] for caption in json.loads(body)["captions"])
