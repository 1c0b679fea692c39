"""What executes engines: torch tensors in, torch tensors out, on a device that nothing else needs to know."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from runtime.backends.cuda.stream import Capture, Stream


class Engine(Protocol):
    """One executable graph of a bundle."""

    @property
    def runs_on(self) -> str:
        """What executes it, as the runtime itself says: providers, and how many operators each took."""
        ...

    def run(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Executes the graph once.

        Args:
            inputs: every input by name, contiguous, on the backend's device.

        Returns:
            every output by name, on the backend's device, in memory of its own.
        """
        ...

    def close(self) -> None:
        """Gives back what the engine holds; it cannot run afterwards."""
        ...


class Bound(Protocol):
    """A graph tied to the memory of its inputs and outputs: each run reads and writes the same."""

    @property
    def capture(self) -> Capture:
        """Whether `run` may be part of a CUDA graph that is captured around it, or is one itself."""
        ...

    def run(self) -> None:
        """Lines one execution up on the engine's stream, without waiting for its end.

        Raises:
            BackendError: it could not be lined up.
        """
        ...


@runtime_checkable
class BindableEngine(Engine, Protocol):
    """An engine that can read and write where it is told, so that results stay on the device for what comes next."""

    stream: Stream

    def dtype(self, name: str) -> torch.dtype:
        """Of an input or output."""
        ...

    def bind(self, inputs: Mapping[str, Tensor], outputs: Mapping[str, Tensor]) -> Bound:
        """Ties the graph to memory, which must stay where it is for as long as the result is used.

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
        """What runs the engines, for messages and results: "onnxruntime CPUExecutionProvider"."""
        ...

    @property
    def device(self) -> torch.device:
        """Where inputs are expected and outputs lie."""
        ...

    def open(self, path: Path, callers: int = 1) -> Engine:
        """Opens the graph in ``path``.

        Args:
            callers: threads that will run it at once; on a CPU each gets its share of the cores.

        Raises:
            BackendError: this backend cannot execute it.
        """
        ...


def first_line(error: Exception) -> str:
    """What an error of a runtime says, without the stack it may append."""
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
