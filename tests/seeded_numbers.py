"""Numbers of made-up weights that one test run draws once: those of a published decoder take seconds."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from filelock import FileLock

from benchmarks import text_recording
from export.readers import seeded, seeded_decoders
from export.readers.seeded_weights import normal

_MIN_KEPT = 2**20
"""Fewer are drawn faster than they are read."""


def draw_once(folder: Path, patch: pytest.MonkeyPatch) -> None:
    """Make the readers of seeded checkpoints and text towers read numbers from ``folder`` if they were drawn before."""
    folder.mkdir(exist_ok=True)

    def stored(full_name: str, shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
        if math.prod(shape) < _MIN_KEPT:
            return normal(full_name, shape)
        path = folder / f"{hashlib.sha256(repr((full_name, shape)).encode()).hexdigest()}.npy"
        with FileLock(path.with_suffix(".lock")):
            if not path.exists():
                np.save(path, normal(full_name, shape))
        numbers: npt.NDArray[np.float32] = np.load(path)
        return numbers

    for module in (seeded, seeded_decoders, text_recording):
        patch.setattr(module, "normal", stored)
