"""A backend's CUDA stream, and capture of its work as CUDA graphs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from threading import RLock
from typing import Literal, Protocol, TypeAlias

import torch

from runtime.errors import BackendError

_RUNS_BEFORE_CAPTURE = 2
"""The first calls of a library allocate, choose and compile kernels, which cannot be captured."""

Work: TypeAlias = Callable[[], None]
CaptureMode: TypeAlias = Literal["around", "within", "none"]
"""Whether a CUDA graph can be captured around a run, is captured within it by its own library, or neither."""


class Capturable(Protocol):
    """What says how its runs can be captured."""

    @property
    def capture_mode(self) -> CaptureMode:
        """How a run can be captured, once it has run."""
        ...


@dataclass(frozen=True)
class CapturedWork:
    """Work that one call enqueues.

    Attributes:
        run: enqueues it; a graph is replayed on torch's current stream, so call it while the stream is `active`.
        fallback_reason: why it is enqueued call by call; None where at least the engine's part is one CUDA graph.
        captured: the engine's part, kept as a graph has only the addresses of its memory, such as a workspace.
    """

    run: Work
    fallback_reason: str | None = None
    captured: Capturable | None = None


class Stream:
    """A backend's own stream on a CUDA device, which one thread at a time uses.

    On a CPU, where every call is synchronous, it only keeps threads apart.

    Attributes:
        exclusive: held by the thread that uses the stream, or what runs on it. While a graph is captured, work that
            another thread enqueued would become part of it.
    """

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self.exclusive = RLock()

    @property
    def handle(self) -> int:
        """The stream as libraries take it; never 0, which is the default stream."""
        return 1 if self._stream is None else int(self._stream.cuda_stream)

    @contextmanager
    def active(self) -> Iterator[None]:
        """Make this torch's current stream, and its device the current one.

        It comes after all work that the thread has enqueued outside so far, and before all that it enqueues there
        later, also if the block raises. The host waits for neither. Memory allocated inside belongs to this stream:
        nothing outside may read it.
        """
        with self.exclusive:
            if self._stream is None:
                yield
                return
            outside = torch.cuda.current_stream(self._stream.device)
            self._stream.wait_stream(outside)
            try:
                with torch.cuda.stream(self._stream):
                    yield
            finally:
                outside.wait_stream(self._stream)

    def synchronize(self) -> None:
        """Wait until all work on the stream is done."""
        if self._stream is not None:
            self._stream.synchronize()

    def capture(self, work: Work, run: Capturable, before_each: Work = lambda: None) -> CapturedWork:
        """Return ``work`` as one CUDA graph where the device accepts it; run it a few times to find out.

        Args:
            work: calls that always read and write the same memory and never wait for results. Exceptions of its first
                runs are passed on.
            run: the engine's part of the work.
            before_each: sets what the work moves on, before each of these runs.
        """
        if self._stream is None:
            return CapturedWork(work, "not on a CUDA device")
        with self.active():  # and torch's stream is restored where a capture fails half way
            for _ in range(_RUNS_BEFORE_CAPTURE):
                before_each()
                work()
            mode = run.capture_mode
            if mode != "around":
                return CapturedWork(work, None if mode == "within" else "this backend's runs cannot be captured")
            self._stream.synchronize()
            graph = torch.cuda.CUDAGraph()
            try:
                # Other threads may go on calling CUDA meanwhile, on other streams.
                with torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
                    work()
            except (RuntimeError, BackendError) as error:
                first = error.__context__ or error  # ending a capture that has failed is an error too
                return CapturedWork(work, next(iter(str(first).splitlines()), type(first).__name__))
        return CapturedWork(graph.replay, captured=run)
