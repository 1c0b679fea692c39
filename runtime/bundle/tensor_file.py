"""Tensors in the safetensors format, read from held files into memory of their own.

The safetensors package maps the file that it is given, or copies what it is given twice. The format is the length of a
header (8 bytes), the header in JSON, and then the values.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from runtime.bundle.dtypes import NUMBER_FORMATS
from runtime.bundle.held_file import HeldFile
from runtime.errors import BundleError

_MAX_HEADER_BYTES = 2**20
_DTYPES = {number_format.safetensors: number_format.torch for number_format in NUMBER_FORMATS.values()}
_DTYPES["I32"] = torch.int32  # of tables


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies in its file.

    Attributes:
        dtype: None for one that bundles have no use for.
        offset: of its first byte.
    """

    dtype: torch.dtype | None
    shape: tuple[int, ...]
    offset: int


class TensorFile:
    """The tensors of a file, by their names; read one by one.

    Raises:
        BundleError: it is not in the safetensors format.
    """

    def __init__(self, file: HeldFile) -> None:
        self.file = file
        try:
            self._tensors = _read_header(file)
        except (ValueError, RecursionError) as error:
            raise BundleError(f"{file.path}: not a safetensors file: {error}; build the bundle again") from None

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def find(self, name: str) -> StoredTensor | None:
        """Return where a tensor lies; None where there is none of that name."""
        return self._tensors.get(name)

    def require(self, name: str, shape: Sequence[int], dtype: torch.dtype) -> StoredTensor:
        """Return where a tensor lies.

        Raises:
            BundleError: it is missing, or of another shape or dtype.
        """
        stored = self._tensors.get(name)
        if stored is None or stored.shape != tuple(shape) or stored.dtype != dtype:
            raise self.invalid(f"{name} {tuple(shape)} in {str(dtype).removeprefix('torch.')}")
        return stored

    def read(self, stored: StoredTensor, device: torch.device) -> Tensor:
        """Return a tensor of this file on a device.

        Raises:
            BundleError: the file was changed since the bundle was opened.
        """
        tensor = torch.empty(stored.shape, dtype=stored.dtype)
        if tensor.numel():
            self.file.read_into(tensor.flatten().view(torch.uint8).numpy().data, stored.offset)
        return tensor.to(device)

    def invalid(self, expected: str) -> BundleError:
        """Return the error that the file does not have what is expected of it."""
        return BundleError(f"{self.file.path}: expected {expected}; build the bundle again")


def _read_header(file: HeldFile) -> dict[str, StoredTensor]:
    if file.size < 8:
        raise ValueError(f"expected a header, got {file.size} bytes")
    length = bytearray(8)
    file.read_into(memoryview(length))
    header_bytes = int.from_bytes(length, "little")
    if header_bytes > min(_MAX_HEADER_BYTES, file.size - 8):
        raise ValueError(f"a header of {header_bytes} bytes in a file of {file.size}")
    text = bytearray(header_bytes)
    file.read_into(memoryview(text), 8)
    header = json.loads(text)
    if not isinstance(header, dict):
        raise ValueError("its header is no object")
    return {
        name: _locate(name, entry, 8 + header_bytes, file.size)
        for name, entry in header.items()
        if name != "__metadata__"
    }


def _locate(name: str, entry: Any, data_offset: int, file_bytes: int) -> StoredTensor:
    """Return where the tensor of a header's entry lies, which is inside the file and as long as its shape says."""
    fields = entry if isinstance(entry, dict) else {}
    shape, offsets = _sizes(fields.get("shape")), _sizes(fields.get("data_offsets"))
    if shape is None or offsets is None or len(offsets) != 2:
        raise ValueError(f"{name!r}: expected a dtype, a shape and two offsets")
    dtype = _DTYPES.get(str(fields.get("dtype")))
    start, end = offsets
    if not start <= end <= file_bytes - data_offset:
        raise ValueError(f"{name!r}: it would lie outside of the file")
    if dtype is not None and end - start != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"{name!r}: {end - start} bytes for the shape {shape}")
    return StoredTensor(dtype, shape, data_offset + start)


def _sizes(values: Any) -> tuple[int, ...] | None:
    """Return a list of numbers from 0 on; None for anything else."""
    is_sizes = isinstance(values, list) and all(type(value) is int and value >= 0 for value in values)
    return tuple(values) if is_sizes else None
