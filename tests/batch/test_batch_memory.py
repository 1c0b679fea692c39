"""A run over many images keeps what it has: no memory, descriptors or threads are added from part to part.

PATCHCAPTION_BATCH_IMAGES says over how many images, with ten regions each; 100000 take an hour on two cores.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from runtime.batch.part_captioner import CaptionerSettings
from runtime.batch.plan import PlannedPart
from runtime.batch.result_files import ResultFormat
from runtime.batch.run import BatchJob, DoneParts, execute_here, run_batch
from runtime.bundle import Bundle
from tests.robustness.test_memory_growth import resources

IMAGES = int(os.environ.get("PATCHCAPTION_BATCH_IMAGES", "96"))
SIDE = int(os.environ.get("PATCHCAPTION_BATCH_SIDE", "320"))
A_PART = max(8, IMAGES // 400)
MAX_GROWTH_MIB = 8
"""Of three quarters of the images, which are 22 MiB if they are kept by mistake, and their tokens 14 MiB."""


@pytest.mark.slow
def test_memory_descriptors_and_threads_stay_as_they_are_from_part_to_part(demo_bundle: Path, tmp_path: Path) -> None:
    boxes = np.random.default_rng(0).uniform((0, 0, 170, 170), (150, 150, 320, 320), (10, 4)) * SIDE / 320
    (tmp_path / "regions.json").write_text(json.dumps(boxes.tolist()))
    (tmp_path / "images").mkdir()
    for number in range(8):
        noise = np.random.default_rng(number).integers(0, 256, (SIDE, SIDE, 3), np.uint8)
        Image.fromarray(noise).save(tmp_path / f"{number}.png")
    for number in range(IMAGES):
        (tmp_path / "images" / f"{number:06d}.png").hardlink_to(tmp_path / f"{number % 8}.png")
    seen = []

    def execute(parts: Iterable[PlannedPart], settings: CaptionerSettings, form: ResultFormat) -> DoneParts:
        for done in execute_here(parts, settings, form):
            seen.append(resources())
            yield done

    job = BatchJob([str(tmp_path / "images")], tmp_path / "regions.json", tmp_path / "out.parquet", part_images=A_PART)
    settings = CaptionerSettings(str(demo_bundle), Bundle(demo_bundle, verify=False).manifest_sha256(), "cpu")
    summary = run_batch(job, settings, execute, print)
    assert summary.counts.rows == 10 * IMAGES
    before, after = seen[len(seen) // 4], seen[-1]
    print(f"{before[0]:.1f} MiB after a quarter, {after[0]:.1f} at the end, {max(one[0] for one in seen):.1f} at most")
    assert after[0] - before[0] < MAX_GROWTH_MIB
    assert after[1:] == before[1:]
