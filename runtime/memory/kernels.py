"""The projection kernels: the native ones on the CPU where they were built, else torch's operators."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from runtime.memory import native_kernels
from runtime.memory.rows import StoredRows
from runtime.memory.sums import RefinedSums
from runtime.memory.torch_kernels import TorchKernels


class ProjectionKernels(Protocol):
    """Computes softmax(cosine / temperature) @ rows.

    Attributes:
        reads_residual_from_file: whether residuals of single rows can be read from their file; else they are refined
            only where the residuals are in memory.
    """

    reads_residual_from_file: bool

    def project(self, rows: StoredRows, unit_queries: Tensor, temperature: float) -> Tensor:
        """Return the weighted sums (R, D) for unit queries (R, D), from rows refined by their residuals."""
        ...

    def project_with_refinement(
        self, rows: StoredRows, unit_queries: Tensor, temperature: float, refine_top_k: int, max_error: float = 0.0
    ) -> RefinedSums:
        """Project onto the rows as stored, but for the nearest of each query, which are refined.

        Args:
            refine_top_k: the most rows that are refined.
            max_error: the error that may be left; fewer rows may be refined, if the others leave less.
        """
        ...


TORCH = "torch"
"""The name of the kernels that are torch's operators."""


class KernelVariant:
    """One variant of the native kernels, whatever is the fastest of them."""

    reads_residual_from_file = True

    def __init__(self, library: native_kernels.NativeKernels, variant: str) -> None:
        self._library, self._variant = library, variant

    def project(self, rows: StoredRows, unit_queries: Tensor, temperature: float) -> Tensor:
        return self._library.project(rows, unit_queries, temperature, self._variant)

    def project_with_refinement(
        self, rows: StoredRows, unit_queries: Tensor, temperature: float, refine_top_k: int, max_error: float = 0.0
    ) -> RefinedSums:
        found = self._library.project_with_refinement
        return found(rows, unit_queries, temperature, refine_top_k, max_error, self._variant)


def kernel_names(device: torch.device) -> tuple[str, ...]:
    """Return the names of the kernels that there are for a device, the usual ones first.

    Raises:
        BackendError: there is a native library that cannot be used.
    """
    library = native_kernels.library() if device.type == "cpu" else None
    return (TORCH,) if library is None else (*library.variants, TORCH)


def projection_kernels(device: torch.device, name: str | None = None) -> ProjectionKernels:
    """Return the kernels for a device.

    Args:
        name: of `kernel_names`: those that were measured to be the fastest. None for the usual ones, which also serve
            where there are no such kernels any more: an old measurement must not keep a bundle from opening.

    Raises:
        BackendError: there is a native library that cannot be used.
    """
    library = native_kernels.library() if device.type == "cpu" else None
    if library is None or name == TORCH:
        return TorchKernels()
    return KernelVariant(library, name) if name in library.variants else library
