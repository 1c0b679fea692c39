"""What tests of the native kernels share."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import TypeVar

import pytest
import torch
from torch import Tensor

from runtime.system.native_library import native_library

KernelsT = TypeVar("KernelsT")

DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}
"""By OpenVINO's names."""

needs_kernels = pytest.mark.skipif(native_library() is None, reason="the native kernels are not built: make native")


def or_skip(kernels: KernelsT | None) -> KernelsT:
    """Return kernels, and skip the test where there are none."""
    if kernels is None:
        pytest.skip("the native kernels have none of this kind for this processor")
    return kernels


def tensor_at(address: int, dtype: torch.dtype, sizes: Sequence[int], strides: Sequence[int] | None = None) -> Tensor:
    """Return the tensor of some memory, contiguous if no strides are given."""
    strides = torch.empty(tuple(sizes), device="meta").stride() if strides is None else strides
    count = 1 + sum((size - 1) * stride for size, stride in zip(sizes, strides, strict=True))
    memory = (ctypes.c_char * (count * dtype.itemsize)).from_address(address)
    return torch.frombuffer(memory, dtype=dtype).as_strided(tuple(sizes), tuple(strides))
