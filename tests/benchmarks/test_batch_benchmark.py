from __future__ import annotations

import re
from pathlib import Path

import pytest

from benchmarks import batch


@pytest.mark.slow
def test_images_are_captioned_here_and_the_rates_shown(demo_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    counts = ["--images", "12", "--part-images", "4", "--regions", "2", "--side", "64", "--rounds", "1"]
    assert batch.main([str(demo_bundle), *counts, "--without-ray"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"- ceiling: [\d.]+ images/s", lines[-2])
    assert re.match(r"- here: [\d.]+ images/s, [\d.]+ with start and end \([\d.]+ s\); [\d.]+ MiB", lines[-1])


def test_too_few_images_are_a_mistake(demo_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert batch.main([str(demo_bundle), "--images", "60"]) != 0
    assert "--images: expected at least 3 parts" in capsys.readouterr().err
