"""A captioner that runs for long keeps what it has: no memory, descriptors or threads are added from image to image.

PATCHCAPTION_IMAGES says over how many images; 1000 takes a minute.
"""

from __future__ import annotations

import gc
import os
import threading
from pathlib import Path

import numpy as np
import pytest

from runtime import Box, Captioner, Mask, WholeImage

IMAGES = int(os.environ.get("PATCHCAPTION_IMAGES", "150"))
WARM_UP = 40
"""Images until allocators and caches have what they need."""
MAX_GROWTH_MIB = 8
"""An image of this size, kept by mistake, is 0.3 MiB; its tokens are 0.2 MiB."""


def resources() -> tuple[float, int, int]:
    """Return the private memory in MiB, the file descriptors and the threads of this process."""
    gc.collect()
    status = Path("/proc/self/status").read_text(encoding="ascii")
    private_kib = int(next(line for line in status.splitlines() if line.startswith("RssAnon")).split()[1])
    return private_kib / 1024, len(list(Path("/proc/self/fd").iterdir())), threading.active_count()


@pytest.mark.slow
def test_memory_descriptors_and_threads_stay_as_they_are(demo_bundle: Path) -> None:
    rng = np.random.default_rng(0)
    mask = np.zeros((320, 320), bool)
    mask[50:200, 80:260] = True
    with Captioner.load(demo_bundle, backend="cpu") as captioner:

        def describe() -> None:
            image = rng.integers(0, 256, (320, 320, 3), np.uint8)
            corners = rng.uniform((0, 0, 170, 170), (150, 150, 320, 320), (int(rng.integers(1, 6)), 4))
            captioner.caption(image, [*(Box(*box) for box in corners.tolist()), Mask(mask), WholeImage()])

        for _ in range(WARM_UP):
            describe()
        before = resources()
        for _ in range(IMAGES):
            describe()
        after = resources()
    assert after[0] - before[0] < MAX_GROWTH_MIB
    assert after[1:] == before[1:]
