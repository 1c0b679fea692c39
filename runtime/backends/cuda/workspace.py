"""Memory for what is in between, on a device."""

from __future__ import annotations

import torch
from torch import Tensor

_ALIGNMENT = 256


class Scratch:
    """Memory for what is in between, shared by contexts that never run at once."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._memory: Tensor | None = None

    def of(self, size: int) -> tuple[Tensor, int]:
        """At least ``size`` bytes, and where they begin. What was given out before stays valid while it is held."""
        if self._memory is None or len(self._memory) < size + _ALIGNMENT:
            self._memory = torch.empty(size + _ALIGNMENT, dtype=torch.uint8, device=self._device)
        return self._memory, -(-self._memory.data_ptr() // _ALIGNMENT) * _ALIGNMENT
