"""The rows of a memory bank as they are stored: read from a bundle's files, in float32 or in fewer bits.

Shapes: M memory rows, D width, m of the rows.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from runtime.bundle import HeldFile
from runtime.bundle.dtypes import NUMBER_FORMATS
from runtime.bundle.tensor_file import TensorFile

_DTYPES = frozenset(number_format.torch for number_format in NUMBER_FORMATS.values())
"""The formats that kernels read rows in."""


@dataclass(frozen=True, eq=False)
class ResidualRows:
    """The residual that rounding left of each row: values[m] * scales[m], values (M, D) int8.

    Attributes:
        scales: (M,) float32.
        values: in memory; None where they stay in the file and take no memory.
        file: the file that they are read from as they are needed.
        offset: the byte at which they begin in that file.
    """

    scales: Tensor
    values: Tensor | None = None
    file: HeldFile | None = None
    offset: int = 0

    def floats(self, start: int, end: int, width: int) -> Tensor:
        """Return the residuals (m, D) float32 of some rows."""
        if self.values is not None:
            values = self.values[start:end]
        else:
            assert self.file is not None
            values = torch.empty((min(end, len(self.scales)) - start, width), dtype=torch.int8)
            self.file.read_into(values.flatten().view(torch.uint8).numpy().data, self.offset + start * width)
        return values * self.scales[start:end, None]

    def head(self, count: int) -> ResidualRows:
        """Return the residuals of the first ``count`` rows."""
        values = None if self.values is None else self.values[:count]
        return replace(self, scales=self.scales[:count], values=values)


@dataclass(frozen=True, eq=False)
class StoredRows:
    """M rows of width D: stored[m] * scales[m], and closer to what they were with ``residual`` added.

    Attributes:
        stored: (M, D) float32, float16, bfloat16 or int8.
        inverse_norms: one over the length that each row had (M,) float32.
        scales: (M,) float32; None for ones.
        residual: what rounding to ``stored`` left; None where that is negligible.
    """

    stored: Tensor
    inverse_norms: Tensor
    scales: Tensor | None = None
    residual: ResidualRows | None = None

    @classmethod
    def load(
        cls, file: HeldFile, residual_file: HeldFile | None, device: torch.device, shape: tuple[int, int] | None = None
    ) -> StoredRows:
        """Read rows into memory; on the CPU residuals stay in their file.

        Args:
            shape: (M, D) of the rows; None for that of the file.

        Raises:
            BundleError: a file is not what it should be. Kernels rely on this check: they read by address.
        """
        tensors = TensorFile(file)
        embeddings = tensors.find("embeddings")
        if embeddings is None or len(embeddings.shape) != 2 or embeddings.dtype not in _DTYPES:
            raise tensors.invalid("embeddings (M, D) in float32, float16, bfloat16 or int8")
        if shape is not None and embeddings.shape != shape:
            raise tensors.invalid(f"embeddings {shape}, got {embeddings.shape}")
        rows = embeddings.shape[:1]
        inverse_norms = tensors.require("inverse_norms", rows, torch.float32)
        scales = tensors.require("scales", rows, torch.float32) if "scales" in tensors else None
        residual = None if residual_file is None else _load_residual(residual_file, embeddings.shape, device)
        return cls(
            stored=tensors.read(embeddings, device),
            inverse_norms=tensors.read(inverse_norms, device),
            scales=None if scales is None else tensors.read(scales, device),
            residual=residual,
        )

    def __len__(self) -> int:
        """Return M."""
        return len(self.stored)

    @cached_property
    def squared_errors(self) -> Tensor:
        """The squared length of what rounding is expected to have left of each row (M,) float32.

        Values are rounded up or down at random, so that they are right on average: the variance is a sixth of a step's
        square, if they lie anywhere between two steps, and a quarter at most. Steps are alike within a row of int8. In
        other formats they are proportional to the value, half or all of the format's precision, and all is taken.
        """
        if self.stored.dtype == torch.int8:
            steps = torch.ones_like(self.inverse_norms) if self.scales is None else self.scales
            return steps.square() * (self.stored.shape[1] / 6)
        return (torch.finfo(self.stored.dtype).eps / self.inverse_norms).square() / 6

    @property
    def has_residual_in_memory(self) -> bool:
        """Whether the residuals are in memory, and not only in their file."""
        return self.residual is not None and self.residual.values is not None

    def floats(self, start: int, end: int) -> Tensor:
        """Return rows from ``start`` to ``end`` (m, D) as float32, refined by their residuals."""
        rows = self.stored[start:end].float()
        if self.scales is not None:
            rows = rows * self.scales[start:end, None]
        if self.residual is not None:
            rows = rows + self.residual.floats(start, end, rows.shape[1])
        return rows

    def head(self, count: int) -> StoredRows:
        """Return the first ``count`` rows."""
        return StoredRows(
            stored=self.stored[:count],
            inverse_norms=self.inverse_norms[:count],
            scales=None if self.scales is None else self.scales[:count],
            residual=None if self.residual is None else self.residual.head(count),
        )


def _load_residual(file: HeldFile, shape: tuple[int, ...], device: torch.device) -> ResidualRows:
    tensors = TensorFile(file)
    values = tensors.require("residual", shape, torch.int8)
    scales = tensors.read(tensors.require("scales", shape[:1], torch.float32), device)
    if device.type != "cpu":
        return ResidualRows(scales, tensors.read(values, device))
    return ResidualRows(scales, file=file, offset=values.offset)
