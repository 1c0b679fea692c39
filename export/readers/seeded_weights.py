"""Standard normal numbers that depend on nothing but their name, of which made-up weights are made."""

from __future__ import annotations

import math
import zlib

import numpy as np
import numpy.typing as npt


def normal(full_name: str, shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
    """Return standard normal numbers that depend on nothing but their name (published-system.md, section 8)."""
    generator = np.random.RandomState(zlib.crc32(full_name.encode()) & 0x7FFFFFFF)
    return generator.standard_normal(math.prod(shape)).astype(np.float32).reshape(shape)


def uneven(rows: npt.NDArray[np.float32], full_name: str) -> npt.NDArray[np.float32]:
    """Return rows (M, D) with lengths that differ, each 1 to about 2 times what it was."""
    return rows * (1 + np.float32(0.3) * np.abs(normal(full_name, (len(rows), 1))))
