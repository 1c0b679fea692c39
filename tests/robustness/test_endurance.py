"""Loading and describing again and again takes no more memory, descriptors or threads than at first.

PATCHCAPTION_ENDURANCE=1 does all 500 cycles and 10,000 captions; CI a tenth of them.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from runtime import Box, Captioner, Region, WholeImage
from tests.robustness.test_memory_growth import resources

SHARE = float(os.environ.get("PATCHCAPTION_ENDURANCE", "0.1"))
CYCLES, CAPTIONS = int(500 * SHARE), int(10_000 * SHARE)
WARM_UP = 0.3
"""Share of the rounds that is done before measuring, in which allocators and caches fill up."""
MAX_GROWTH_MIB = 16.0
"""Growth in the rounds after the warm-up. The C library keeps memory for each thread that there was: up to 10 MiB,
however many rounds. The images and tokens of a stream, kept for 35 rounds, would be 45 MiB."""

pytestmark = pytest.mark.slow


def check_growth(work: Callable[[], object], rounds: int) -> None:
    """Do rounds of work, and require that the resources stay as they are after the warm-up."""
    for _ in range(max(1, int(WARM_UP * rounds))):
        work()
    memory_before, files_before, threads_before = resources()
    for _ in range(rounds - int(WARM_UP * rounds)):
        work()
    memory, files, threads = resources()
    assert memory - memory_before < MAX_GROWTH_MIB
    assert (files, threads) == (files_before, threads_before)


@pytest.mark.parametrize("backend", ["cpu", "openvino"])
def test_loading_and_closing(demo_bundle: Path, backend: str) -> None:
    def cycle() -> None:
        with Captioner.load(demo_bundle, backend, threads=1, verify=False) as captioner:
            captioner.caption(torch.zeros(3, 50, 50, dtype=torch.uint8), [WholeImage()])

    check_growth(cycle, CYCLES if backend == "cpu" else CYCLES // 5)


def test_captions(demo: Captioner) -> None:
    regions: list[Region] = [*(Box(10 * index, 5, 10 * index + 60, 90) for index in range(24)), WholeImage()]
    image = torch.randint(0, 256, (3, 240, 320), dtype=torch.uint8)
    check_growth(lambda: demo.caption(image, regions), CAPTIONS // len(regions))


def test_streams_and_batches(demo: Captioner) -> None:
    image = torch.randint(0, 256, (3, 240, 320), dtype=torch.uint8)

    def cycle() -> None:
        for _ in demo.stream([image] * 3, [WholeImage()], reuse=None):
            pass
        with demo.batching(max_wait_ms=0) as batching:
            batching.caption(image, [WholeImage()])

    check_growth(cycle, CYCLES)
