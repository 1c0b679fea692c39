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
    """The projector of decoders that read region vectors as they are.

    Args:
        bank: a bank whose captions are looked up all the same; None if there is none.
    """

    def __init__(self, bank: MemoryBank | None = None) -> None:
        self._bank = bank

    def project(self, vectors: Tensor) -> Tensor:
        return vectors

    def nearest(self, vectors: Tensor, count: int) -> list[tuple[MemoryMatch, ...]]:
        if self._bank is None:
            raise PatchcaptionError("the nearest captions of a memory were asked for, but this bundle has no memory")
        return self._bank.nearest(vectors, count)


def load_bank(bundle: Bundle, device: torch.device, kernels: str | None = None) -> MemoryBank | None:
    """Open a bundle's memory bank on a device; None for a bundle without one.

    Args:
        kernels: what projects, by a name of `kernel_names`; None for the usual ones.

    Raises:
        BundleError: its files are not what they should be.
    """
    memory = bundle.manifest.memory
    return None if memory is None else MemoryBank.load(bundle, memory, device, kernels)


def projector_of(bank: MemoryBank | None) -> Projector:
    """Return how region vectors become what the decoder reads, in a bundle with or without a bank."""
    return bank if bank is not None and bank.config.projects else Identity(bank)
