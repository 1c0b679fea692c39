"""The backend interface: engines take and return torch tensors; only the backend knows the device."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from threading import Lock
from typing import Literal, Protocol, TypeAlias

import torch
from torch import Tensor

from runtime.backends.cuda.stream import CaptureMode, Stream
from runtime.bundle import EngineFiles
from runtime.errors import BackendError

Device: TypeAlias = Literal["cpu", "cuda"]


@dataclass(frozen=True)
class EngineReport:
    """The execution of an engine, as its runtime reports it.

    Attributes:
        provider: what executes it: providers, and how many operators each took.
        graph_fallbacks: for each input shape that a GPU keeps memory for, why it is not replayed as one CUDA graph;
            None where it is.
        fused_layers: the names of the layers that TensorRT fused it into; None on other backends.
    """

    provider: str
    graph_fallbacks: tuple[str | None, ...] = ()
    fused_layers: tuple[str, ...] | None = None


class Engine(Protocol):
    """One executable graph of a bundle. Its methods may be called from any thread."""

    @property
    def bindable(self) -> BindableEngine | None:
        """The engine's interface to fixed memory; None where it has none."""
        ...

    def run(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Execute the graph once.

        Args:
            inputs: every input by name, contiguous, on the backend's device.

        Returns:
            every output by name, on the backend's device, in memory of its own.
        """
        ...

    def report(self) -> EngineReport:
        """Return what executes the engine."""
        ...

    def close(self) -> None:
        """Release what the engine holds; it cannot run afterwards."""
        ...


class BoundRun(Protocol):
    """A run of a graph over fixed memory: each run reads and writes the same inputs and outputs."""

    @property
    def capture_mode(self) -> CaptureMode:
        """Whether `run`, once it has run, may be captured as part of a CUDA graph, or is one already."""
        ...

    def run(self) -> None:
        """Enqueue one execution on the engine's stream, which must be active; does not synchronize.

        Raises:
            BackendError: it could not be enqueued.
        """
        ...


class BindableEngine(Engine, Protocol):
    """An engine that can read and write given memory, so that results stay on the device for what comes next."""

    @property
    def stream(self) -> Stream:
        """The engine's stream."""
        ...

    def dtype(self, name: str) -> torch.dtype:
        """Return the dtype of an input or output."""
        ...

    def bind(self, inputs: Mapping[str, Tensor], outputs: Mapping[str, Tensor]) -> BoundRun:
        """Bind the graph to memory, which the result keeps.

        Args:
            inputs: every input by name, contiguous, on the backend's device.
            outputs: every output by name, likewise; none may share memory with an input.

        Raises:
            BackendError: a name, dtype or shape that the graph does not have.
        """
        ...


class Backend(Protocol):
    """Opens engines on one device."""

    @property
    def name(self) -> str:
        """Product, version and device, for messages and results: "onnxruntime 1.23.0 CPUExecutionProvider"."""
        ...

    @property
    def device(self) -> torch.device:
        """Where inputs are expected and outputs are returned."""
        ...

    @property
    def needs_warm_up(self) -> bool:
        """Whether first runs choose kernels, allocate and capture, which should happen before the first request."""
        ...

    def open(self, files: EngineFiles, concurrency: int = 1) -> Engine:
        """Open an engine.

        Args:
            concurrency: threads that will run it at the same time; on a CPU each gets its share of the cores, on a GPU
                runs follow one another.

        Raises:
            BackendError: this backend cannot execute it.
        """
        ...


class LazyEngine:
    """An engine that is opened when it is first asked for.

    Args:
        open_engine: opens it; its errors are those of `get`.
    """

    def __init__(self, open_engine: Callable[[], Engine]) -> None:
        self._open_engine = open_engine
        self._engine: Engine | None = None
        self._opening, self._is_closed = Lock(), False

    def get(self) -> Engine:
        """Return the engine, opened once for all threads.

        Raises:
            BackendError: it was closed, and nobody would close what is opened now.
        """
        with self._opening:
            if self._is_closed:
                raise BackendError("the captioner was closed; load the bundle again")
            if self._engine is None:
                self._engine = self._open_engine()
            return self._engine

    def close(self) -> None:
        """Close the engine if it was opened."""
        with self._opening:
            self._is_closed = True
            if self._engine is not None:
                self._engine.close()


def first_line(error: Exception) -> str:
    """Return the first line of an error's message, without the stack trace that runtimes append."""
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
