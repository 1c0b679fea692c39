"""The rows of a memory bank as they are stored: mapped from a bundle's files, in float32 or in fewer bits.

Shapes: M memory rows, D width, m of the rows.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from runtime.bundle.dtypes import NUMBER_FORMATS
from runtime.errors import BundleError

_STORED_DTYPES = tuple(number_format.torch for number_format in NUMBER_FORMATS.values())


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
    file: BinaryIO | None = None
    offset: int = 0

    def floats(self, start: int, end: int, width: int) -> Tensor:
        """Return the residuals (m, D) float32 of some rows."""
        if self.values is not None:
            values = self.values[start:end]
        else:
            assert self.file is not None
            data = bytearray((min(end, len(self.scales)) - start) * width)
            if os.preadv(self.file.fileno(), [data], self.offset + start * width) != len(data):
                raise BundleError(f"{self.file.name}: truncated; build the bundle again")
            values = torch.frombuffer(data, dtype=torch.int8).view(-1, width)
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
    def load(cls, file: Path, residual_file: Path | None, device: torch.device) -> StoredRows:
        """Map rows; on the CPU nothing is read before it is used, and processes share what they read.

        Raises:
            BundleError: a file is not what it should be. Kernels rely on this check: they read by address.
        """
        tensors = _read(file, device)
        stored = tensors.get("embeddings")
        if stored is None or stored.ndim != 2 or stored.dtype not in _STORED_DTYPES:
            raise _invalid(file, "embeddings (M, D) in float32, float16, bfloat16 or int8")
        rows = (len(stored),)
        return cls(
            stored=stored,
            inverse_norms=_require_tensor(tensors, "inverse_norms", rows, torch.float32, file),
            scales=_require_tensor(tensors, "scales", rows, torch.float32, file) if "scales" in tensors else None,
            residual=None if residual_file is None else _load_residual(residual_file, stored.shape, device),
        )

    def __len__(self) -> int:
        """Return M."""
        return len(self.stored)

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


def _load_residual(path: Path, shape: torch.Size, device: torch.device) -> ResidualRows:
    tensors = _read(path, device)
    values = _require_tensor(tensors, "residual", shape, torch.int8, path)
    scales = _require_tensor(tensors, "scales", shape[:1], torch.float32, path)
    if device.type != "cpu":
        return ResidualRows(scales, values)
    file = path.open("rb")
    header_bytes = int.from_bytes(file.read(8), "little")  # safetensors: the header's length, then the header in JSON
    first, _ = json.loads(file.read(header_bytes))["residual"]["data_offsets"]
    return ResidualRows(scales.clone(), file=file, offset=8 + header_bytes + first)


def _read(path: Path, device: torch.device) -> dict[str, Tensor]:
    try:
        return load_file(path, device=str(device))
    except (SafetensorError, OSError) as error:
        raise BundleError(f"{path}: not a safetensors file: {error}; build the bundle again") from None


def _require_tensor(
    tensors: dict[str, Tensor], name: str, shape: Sequence[int], dtype: torch.dtype, file: Path
) -> Tensor:
    tensor = tensors.get(name)
    if tensor is None or tensor.shape != torch.Size(shape) or tensor.dtype != dtype:
        raise _invalid(file, f"{name} {tuple(shape)} in {str(dtype).removeprefix('torch.')}")
    return tensor


def _invalid(file: Path, expected: str) -> BundleError:
    return BundleError(f"{file}: expected {expected}; build the bundle again")
