"""What executes engines: torch tensors in, torch tensors out, on a device that nothing else needs to know."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor


class Engine(Protocol):
    """One executable graph of a bundle."""

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

    def open(self, path: Path) -> Engine:
        """Opens the graph in ``path``.

        Raises:
            BackendError: this backend cannot execute it.
        """
        ...


def first_line(error: Exception) -> str:
    """What an error of a runtime says, without the stack it may append."""
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
