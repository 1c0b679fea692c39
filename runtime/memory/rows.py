"""The rows of a memory bank as they are stored: mapped from a bundle's files, in fewer bits than they came with or not.

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

from runtime.errors import BundleError

_STORED_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.int8)


@dataclass(frozen=True, eq=False)
class FineRows:
    """What rounding left of each row: numbers[m] * scales[m], numbers (M, D) int8.

    Attributes:
        scales: (M,) float32.
        numbers: in memory; or None where they stay in
        file: which they are read from as they are wanted, so that they take no memory.
        offset: of the first of them in that file.
    """

    scales: Tensor
    numbers: Tensor | None = None
    file: BinaryIO | None = None
    offset: int = 0

    def floats(self, start: int, end: int, width: int) -> Tensor:
        """(m, D) float32."""
        if self.numbers is not None:
            numbers = self.numbers[start:end]
        else:
            assert self.file is not None
            data = bytearray((min(end, len(self.scales)) - start) * width)
            if os.preadv(self.file.fileno(), [data], self.offset + start * width) != len(data):
                raise BundleError(f"{self.file.name}: truncated; build the bundle again")
            numbers = torch.frombuffer(data, dtype=torch.int8).view(-1, width)
        return numbers * self.scales[start:end, None]

    def head(self, count: int) -> FineRows:
        """Of the first ``count`` rows."""
        numbers = None if self.numbers is None else self.numbers[:count]
        return replace(self, scales=self.scales[:count], numbers=numbers)


@dataclass(frozen=True, eq=False)
class StoredRows:
    """M rows of width D: stored[m] * scales[m], and with ``fine`` closer to what they were.

    Attributes:
        stored: (M, D) float32, float16, bfloat16 or int8.
        inverse_norms: one over the length that each row had (M,) float32.
        scales: (M,) float32; None for ones.
        fine: what rounding to ``stored`` left; None where that is little.
    """

    stored: Tensor
    inverse_norms: Tensor
    scales: Tensor | None = None
    fine: FineRows | None = None

    @classmethod
    def load(cls, file: Path, fine_file: Path | None, device: torch.device) -> StoredRows:
        """Maps them; on the CPU nothing is read before it is used, and processes share what they read.

        Raises:
            BundleError: a file is not what it should be. Kernels trust what is found here: they read by address.
        """
        tensors = _read(file, device)
        stored = tensors.get("embeddings")
        if stored is None or stored.ndim != 2 or stored.dtype not in _STORED_DTYPES:
            raise _broken(file, "embeddings (M, D) in float32, float16, bfloat16 or int8")
        rows = (len(stored),)
        return cls(
            stored=stored,
            inverse_norms=_tensor(tensors, "inverse_norms", rows, torch.float32, file),
            scales=_tensor(tensors, "scales", rows, torch.float32, file) if "scales" in tensors else None,
            fine=None if fine_file is None else _load_fine(fine_file, stored.shape, device),
        )

    def __len__(self) -> int:
        return len(self.stored)

    @property
    def fine_in_memory(self) -> bool:
        """Whether what rounding left is there, and not in a file."""
        return self.fine is not None and self.fine.numbers is not None

    def floats(self, start: int, end: int) -> Tensor:
        """Rows from ``start`` to ``end`` (m, D) as float32, as near as they are known."""
        rows = self.stored[start:end].float()
        if self.scales is not None:
            rows = rows * self.scales[start:end, None]
        if self.fine is not None:
            rows = rows + self.fine.floats(start, end, rows.shape[1])
        return rows

    def head(self, count: int) -> StoredRows:
        """The first ``count`` rows."""
        return StoredRows(
            stored=self.stored[:count],
            inverse_norms=self.inverse_norms[:count],
            scales=None if self.scales is None else self.scales[:count],
            fine=None if self.fine is None else self.fine.head(count),
        )


def _load_fine(path: Path, shape: torch.Size, device: torch.device) -> FineRows:
    tensors = _read(path, device)
    numbers = _tensor(tensors, "fine", shape, torch.int8, path)
    scales = _tensor(tensors, "scales", shape[:1], torch.float32, path)
    if device.type != "cpu":
        return FineRows(scales, numbers)
    file = path.open("rb")
    header_bytes = int.from_bytes(file.read(8), "little")  # the safetensors format: its length, then the header in JSON
    first, _ = json.loads(file.read(header_bytes))["fine"]["data_offsets"]
    return FineRows(scales.clone(), file=file, offset=8 + header_bytes + first)


def _read(path: Path, device: torch.device) -> dict[str, Tensor]:
    try:
        return load_file(path, device=str(device))
    except (SafetensorError, OSError) as error:
        raise BundleError(f"{path}: not a safetensors file: {error}; build the bundle again") from None


def _tensor(tensors: dict[str, Tensor], name: str, shape: Sequence[int], dtype: torch.dtype, file: Path) -> Tensor:
    tensor = tensors.get(name)
    if tensor is None or tensor.shape != torch.Size(shape) or tensor.dtype != dtype:
        raise _broken(file, f"{name} {tuple(shape)} in {str(dtype).removeprefix('torch.')}")
    return tensor


def _broken(file: Path, expected: str) -> BundleError:
    return BundleError(f"{file}: expected {expected}; build the bundle again")
