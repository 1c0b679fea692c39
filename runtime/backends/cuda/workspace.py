"""Memory as TensorRT asks for it: aligned, and a workspace that execution contexts share."""

from __future__ import annotations

import torch
from torch import Tensor

_ALIGNMENT_BYTES = 256
"""Of every address that TensorRT is given."""


def aligned(tensor: Tensor) -> Tensor:
    """Return the tensor, or a copy where its memory begins anywhere, as that of an image in a batch does."""
    return tensor.clone() if tensor.data_ptr() % _ALIGNMENT_BYTES else tensor


class Workspace:
    """Memory for activations, shared by execution contexts that never run concurrently."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._memory: Tensor | None = None

    def reserve(self, size_bytes: int) -> tuple[Tensor, int]:
        """Return memory of at least so many bytes, and its aligned address.

        Call it while the stream of the contexts is active, so that the memory goes back to that stream. What was
        returned before stays valid while it is held.
        """
        if self._memory is None or len(self._memory) < size_bytes + _ALIGNMENT_BYTES:
            self._memory = torch.empty(size_bytes + _ALIGNMENT_BYTES, dtype=torch.uint8, device=self._device)
        return self._memory, -(-self._memory.data_ptr() // _ALIGNMENT_BYTES) * _ALIGNMENT_BYTES
