"""A double of what `torch.cuda` has for streams and graphs, which writes down what waits for what.

Nothing runs on a GPU: the work on "streams" is done at once, by the CPU.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

CUDA = torch.device("cuda", 0)


class CudaDouble:
    """The double, once installed.

    Attributes:
        log: what was called, in order: "own waits for outside".
        capture_fails: whether the graph that is captured next is invalid, as its end then says.
    """

    def __init__(self) -> None:
        self.log: list[str] = []
        self.capture_fails = False
        self._thread = threading.local()
        self._outside = StreamDouble(self, "outside")

    @property
    def current(self) -> StreamDouble:
        """The current stream of the thread that asks."""
        stream: StreamDouble = getattr(self._thread, "current", self._outside)
        return stream

    @current.setter
    def current(self, stream: StreamDouble) -> None:
        self._thread.current = stream

    def install(self, patch: pytest.MonkeyPatch) -> None:
        patch.setattr(torch.cuda, "Stream", lambda _: StreamDouble(self, "own"))
        patch.setattr(torch.cuda, "current_stream", lambda _=None: self.current)
        patch.setattr(torch.cuda, "stream", self._set_stream)
        patch.setattr(torch.cuda, "CUDAGraph", lambda: GraphDouble(self))
        patch.setattr(torch.cuda, "graph", GraphCapture)

    @contextmanager
    def _set_stream(self, stream: StreamDouble) -> Iterator[None]:
        before, self.current = self.current, stream
        try:
            yield
        finally:
            self.current = before


class StreamDouble:
    cuda_stream = 7
    device = CUDA

    def __init__(self, double: CudaDouble, name: str) -> None:
        self._double, self.name = double, name

    def wait_stream(self, other: StreamDouble) -> None:
        self._double.log.append(f"{self.name} waits for {other.name}")

    def synchronize(self) -> None:
        self._double.log.append(f"{self.name} synchronized")

    def record_event(self) -> str:
        self._double.log.append(f"{self.name} recorded")
        return f"event of {self.name}"

    def wait_event(self, event: str) -> None:
        self._double.log.append(f"{self.name} waits for {event}")


class GraphDouble:
    def __init__(self, double: CudaDouble) -> None:
        self.double = double

    def replay(self) -> None:
        self.double.log.append(f"replayed on {self.double.current.name}")


class GraphCapture:
    """As torch's does, it leaves the stream current where the end of a capture fails."""

    def __init__(self, graph: GraphDouble, stream: StreamDouble, capture_error_mode: str) -> None:
        assert capture_error_mode == "thread_local", "other threads may not allocate meanwhile"
        self._double, self._stream = graph.double, stream

    def __enter__(self) -> None:
        self._before, self._double.current = self._double.current, self._stream
        self._double.log.append("capture begins")

    def __exit__(self, *_: object) -> None:
        self._double.log.append("capture ends")
        if self._double.capture_fails:
            raise RuntimeError("the capture was invalidated\nmore")
        self._double.current = self._before


class Allocations(TorchDispatchMode):
    """Notes on which stream each memory was allocated."""

    def __init__(self, double: CudaDouble) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._double, self._stream_of = double, dict[int, str]()
        self._kept: list[Tensor] = []  # so that no address comes twice

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for one in result if isinstance(result, (list, tuple)) else [result]:
            if isinstance(one, Tensor):
                self._kept.append(one)
                self._stream_of.setdefault(one.untyped_storage().data_ptr(), self._double.current.name)
        return result

    def stream_of(self, tensor: Tensor) -> str:
        return self._stream_of[tensor.untyped_storage().data_ptr()]
