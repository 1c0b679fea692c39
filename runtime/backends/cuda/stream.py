"""A backend's CUDA stream, and capture of its work as CUDA graphs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch

_RUNS_BEFORE_CAPTURE = 2
"""The first calls of a library allocate and choose kernels, which cannot be captured."""

Work: TypeAlias = Callable[[], None]
CaptureMode: TypeAlias = Literal["around", "within", "none"]
"""Whether a CUDA graph can be captured around a run, is captured within it by its own library, or neither."""


@dataclass(frozen=True)
class CapturedWork:
    """Work that one call enqueues.

    Attributes:
        run: enqueues it.
        fallback_reason: why it is enqueued call by call; None where at least the engine's part is one CUDA graph.
    """

    run: Work
    fallback_reason: str | None = None


class Stream:
    """A backend's own stream on a CUDA device; does nothing on a CPU, where every call is synchronous."""

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    @property
    def handle(self) -> int:
        """The stream as libraries take it; never 0, which is the default stream."""
        return 1 if self._stream is None else int(self._stream.cuda_stream)

    @contextmanager
    def active(self) -> Iterator[None]:
        """Make this torch's current stream: after all work enqueued outside so far, and before all that follows there.

        The host waits for neither.
        """
        if self._stream is None:
            yield
            return
        outside = torch.cuda.current_stream(self._stream.device)
        self._stream.wait_stream(outside)
        with torch.cuda.stream(self._stream):
            yield
        outside.wait_stream(self._stream)

    def capture(self, work: Work, mode: CaptureMode = "around") -> CapturedWork:
        """Return ``work`` as one CUDA graph where the device accepts it; run it a few times to find out.

        Args:
            work: calls that always read and write the same memory and never wait for results. Exceptions of its first
                run are passed on.
            mode: how the engine's run within the work can be captured.
        """
        if self._stream is None:
            return CapturedWork(work, "not on a CUDA device")
        if mode != "around":
            return CapturedWork(work, None if mode == "within" else "this backend's runs cannot be captured")
        with self.active():
            for _ in range(_RUNS_BEFORE_CAPTURE):
                work()
        self._stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        try:
            # Other threads may go on calling CUDA meanwhile.
            with torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
                work()
        except RuntimeError as error:
            return CapturedWork(work, str(error).splitlines()[0])
        return CapturedWork(graph.replay)
