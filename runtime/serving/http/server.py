"""Serves the application with uvicorn, until a signal asks it to end."""

from __future__ import annotations

import gc
import logging
import signal
import socket
from collections.abc import Callable
from functools import partial
from types import FrameType
from typing import Any

import uvicorn
from fastapi import FastAPI

from runtime.serving.http.connections import PatientProtocol, most_connections
from runtime.serving.http.settings import ServiceLimits

_BACKLOG = 1024
_HEAD_BYTES = 2**16
"""Of a request's head: a browser sends up to 8 KiB."""
_CONNECTIONS, _CONNECTIONS_PER_REQUEST = 1024, 8
"""Connections may be open that ask nothing; as many as this, or for each place in the queue if that is more."""
_GRACE_SECONDS = 5
"""Beyond the time of a request, for its answer to be taken."""


class Server(uvicorn.Server):
    """A server for one application: it ends when those requests that have come are answered.

    Args:
        app: of `create_app`.
        on_listening: called as soon as clients can connect.

    Attributes:
        failure: of `on_listening`, which ends the server.
    """

    failure: Exception | None = None

    def __init__(self, app: FastAPI, limits: ServiceLimits, on_listening: Callable[[], object]) -> None:
        most = most_connections(max(_CONNECTIONS, _CONNECTIONS_PER_REQUEST * limits.queue))
        protocol: Any = partial(PatientProtocol, most=most)
        super().__init__(
            uvicorn.Config(
                app,
                http=protocol,
                ws="none",
                lifespan="on",
                log_level="error",  # what clients do wrong is answered, and not logged
                access_log=False,
                server_header=False,
                proxy_headers=False,  # nothing here depends on who the client is
                backlog=_BACKLOG,
                h11_max_incomplete_event_size=_HEAD_BYTES,
                timeout_graceful_shutdown=int(limits.seconds) + _GRACE_SECONDS,
            )
        )
        logging.getLogger("python_multipart").setLevel(logging.ERROR)
        self._service, self._on_listening = app.state.service, on_listening

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, and say so."""
        await super().startup(sockets)
        if not self.started:
            return
        try:
            self._on_listening()
        except Exception as error:  # here it would end up in uvicorn's log
            self.failure, self.should_exit = error, True

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Let probes see that no more requests should come, answer those that have, and end."""
        self._service.is_ending = True
        super().handle_exit(sig, frame)
        if self.force_exit:
            logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)  # requests that are cancelled are no errors
        self._captured_signals.clear()  # it ends as it was asked to; uvicorn would raise the signal again


def serve(app: FastAPI, limits: ServiceLimits, bound: socket.socket, on_listening: Callable[[], object]) -> None:
    """Serve an application on a bound socket until SIGTERM, SIGINT or SIGHUP, and then until all is answered.

    Args:
        on_listening: called as soon as clients can connect; what it raises ends the server, and is raised.
    """
    server = Server(app, limits, on_listening)
    gc.collect()
    gc.freeze()  # what is loaded stays: looking through it again and again would halt all requests
    before = signal.getsignal(signal.SIGHUP)
    if before is not signal.SIG_IGN:  # which nohup asks for
        signal.signal(signal.SIGHUP, server.handle_exit)
    try:
        server.run([bound])
    finally:
        signal.signal(signal.SIGHUP, before)
    if server.failure is not None:
        raise server.failure
