"""CUDA tensors that pass from one thread to another.

A thread enqueues its work on its current stream, and streams do not wait for each other: whoever reads a tensor in
another thread must first let its own stream wait for the one that makes it.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

_CPU = torch.device("cpu")


class Handover:
    """A point in the work of the thread that makes it, for another thread to go on from.

    Args:
        values: what is handed over; those that are CUDA tensors may be released at any time afterwards.
        device: a device whose work is waited for even if no tensor on it is known.
    """

    def __init__(self, values: Iterable[object] = (), device: torch.device = _CPU) -> None:
        self._tensors = [value for value in values if isinstance(value, Tensor) and value.is_cuda]
        devices = {tensor.device for tensor in self._tensors} | ({device} if device.type == "cuda" else set())
        self._events = {device: torch.cuda.current_stream(device).record_event() for device in devices}

    def receive(self) -> None:
        """Let what this thread enqueues from now on come after that point; the host does not wait."""
        for device, event in self._events.items():
            torch.cuda.current_stream(device).wait_event(event)
        for tensor in self._tensors:  # so that its memory is not reused before this thread's work is done with it
            tensor.record_stream(torch.cuda.current_stream(tensor.device))
