"""A running service on loopback."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event, Thread

from runtime import Captioner
from runtime.serving.http.app import create_app
from runtime.serving.http.connections import bind
from runtime.serving.http.server import Server
from runtime.serving.http.settings import DEFAULT_WORKERS, LIMITS, LOOPBACK, Access, ServiceLimits


@contextmanager
def served(
    captioner: Captioner, access: Access = LOOPBACK, limits: ServiceLimits = LIMITS, workers: int = DEFAULT_WORKERS
) -> Iterator[str]:
    """Serve a captioner from a thread on a free port of this machine; yield the URL, without a slash at its end."""
    app, bound = create_app(captioner, access, limits, workers), bind("127.0.0.1", 0)
    is_listening = Event()
    server = Server(app, limits, is_listening.set)
    thread = Thread(target=server.run, args=([bound],), name="service under test")
    thread.start()
    try:
        assert is_listening.wait(30)
        yield f"http://127.0.0.1:{bound.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(60)
        assert not thread.is_alive()
