"""The stream that a backend lines its work up on, and pieces of that work as one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch

_RUNS_BEFORE_CAPTURE = 2
"""The first calls of a library allocate and choose, which cannot be captured."""

Work = Callable[[], None]
Capture = Literal["around", "within", "none"]
"""Whether a CUDA graph can be captured around a run, is captured within it by its own library, or neither."""


@dataclass(frozen=True)
class Piece:
    """Work that is lined up by one call.

    Attributes:
        run: lines it up.
        is_captured: as one CUDA graph, at least what the engine does of it; else call by call.
        why_not: why it is not, or what the device said.
    """

    run: Work
    is_captured: bool
    why_not: str = ""


class Stream:
    """A stream of its own on a CUDA device; on a CPU, where each call waits for its end, nothing.

    Args:
        device: whose.
    """

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    @property
    def handle(self) -> int:
        """Of the stream, as libraries take it; never 0, which is the default stream."""
        return 1 if self._stream is None else int(self._stream.cuda_stream)

    @contextmanager
    def active(self) -> Iterator[None]:
        """Lines up what torch does on this stream: after all of the stream outside so far, and before all that follows
        there. The host waits for neither."""
        if self._stream is None:
            yield
            return
        outside = torch.cuda.current_stream(self._stream.device)
        self._stream.wait_stream(outside)
        with torch.cuda.stream(self._stream):
            yield
        outside.wait_stream(self._stream)

    def piece(self, work: Work, capture: Capture = "around") -> Piece:
        """``work`` as one CUDA graph where the device takes it so; it is run a few times for that.

        Args:
            work: calls that always read and write the same memory and never ask for results. Exceptions of its own
                first run are passed on.
            capture: of the engine's run that is part of it.
        """
        if self._stream is None:
            return Piece(work, is_captured=False, why_not="not on a CUDA device")
        if capture != "around":
            is_captured = capture == "within"
            return Piece(work, is_captured, "" if is_captured else "this backend's runs cannot be captured")
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
            return Piece(work, is_captured=False, why_not=str(error).splitlines()[0])
        return Piece(graph.replay, is_captured=True)
