"""The projector of a bundle: its memory bank, or nothing for a noise-trained decoder."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from runtime.bundle import Bundle
from runtime.errors import PatchcaptionError
from runtime.memory.bank import MemoryBank
from runtime.memory.match import MemoryMatch


class Projector(Protocol):
    """Carries region vectors into the space that the decoder reads."""

    def project(self, vectors: Tensor) -> Tensor:
        """Return vectors (R, D) for region vectors (R, D)."""
        ...

    def nearest(self, vectors: Tensor, count: int) -> list[tuple[MemoryMatch, ...]]:
        """Return for each of the vectors (R, D) its ``count`` nearest captions, the nearest first.

        Raises:
            PatchcaptionError: the bundle has no memory bank.
        """
        ...


class Identity:
    """The projector of noise-trained decoders, which read region vectors as they are."""

    def project(self, vectors: Tensor) -> Tensor:
        return vectors

    def nearest(self, vectors: Tensor, count: int) -> list[tuple[MemoryMatch, ...]]:  # noqa: ARG002  # of the Protocol
        raise PatchcaptionError("the nearest captions of a memory were asked for, but this bundle has no memory")


def load_projector(bundle: Bundle, device: torch.device) -> Projector:
    """Open a bundle's memory bank on a device.

    Raises:
        BundleError: its files are not what they should be.
    """
    memory = bundle.manifest.memory
    return Identity() if memory is None else MemoryBank.load(bundle, memory, device)
