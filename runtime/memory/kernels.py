"""The projection kernels: the native ones on the CPU where they were built, else torch's operators."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from runtime.memory import native_kernels
from runtime.memory.rows import StoredRows
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
        self, rows: StoredRows, unit_queries: Tensor, temperature: float, refine_top_k: int
    ) -> tuple[Tensor, Tensor]:
        """Project onto the rows as stored, but for the ``refine_top_k`` nearest of each query, which are refined.

        Returns:
            the weighted sums (R, D), and the unrefined mass of each (R,): the sum of weight times row length over the
            unrefined rows, relative to the weighted sum's length.
        """
        ...


def projection_kernels(device: torch.device) -> ProjectionKernels:
    """Return the kernels for a device.

    Raises:
        BackendError: there is a native library that cannot be used.
    """
    library = native_kernels.library() if device.type == "cpu" else None
    return library or TorchKernels()
