"""The overlap benchmark: the bound that it states, and that it times what it says."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import overlap


def test_no_schedule_makes_more_frames_than_all_cores_would_alone() -> None:
    # one core does 10 frames a second, so two do at most 20; one step after another they do 16
    assert overlap.most_that_overlap_brings(one_core_fps=10, in_turn_fps=16, cores=2) == 1.25


@pytest.mark.slow
def test_each_way_is_timed_for_each_number_of_regions(demo_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("av")
    assert overlap.main([str(demo_bundle), "--regions", "2", "--frames", "2", "--turns", "1"]) == 0
    last = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")][-1]
    cells = [cell.strip() for cell in last.strip("| ").split("|")]
    assert cells[0] == "2"
    assert all(float(cell) > 0 for cell in cells[1:])
    assert len(cells) == 1 + len(overlap.WAYS) + 3
