"""What tests of the native kernels share."""

from __future__ import annotations

from typing import TypeVar

import pytest

from runtime.system.native_library import native_library

KernelsT = TypeVar("KernelsT")

needs_kernels = pytest.mark.skipif(native_library() is None, reason="the native kernels are not built: make native")


def or_skip(kernels: KernelsT | None) -> KernelsT:
    """Return kernels, and skip the test where there are none."""
    if kernels is None:
        pytest.skip("the native kernels have none of this kind for this processor")
    return kernels
