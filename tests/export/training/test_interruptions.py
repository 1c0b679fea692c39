"""A training that is ended at any moment is gone on with, to the same bytes as one that never was."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

IS_ENDURANCE = os.environ.get("PATCHCAPTION_ENDURANCE") == "1"
MOMENTS: dict[str, int] = {
    **{"SIGKILL": 20, "SIGTERM": 4, "SIGHUP": 4, "SIGINT": 4, "FULL": 10},
    **({} if IS_ENDURANCE else {"SIGKILL": 6, "SIGTERM": 2, "SIGHUP": 2, "SIGINT": 2, "FULL": 4}),
}
"""Of each ending, those that come to events."""
SLOW = {"TIME": 20 if IS_ENDURANCE else 6} | MOMENTS


@pytest.mark.parametrize("moments", [{"SIGKILL": 3}, pytest.param(SLOW, marks=pytest.mark.slow)])
def test_a_training_that_is_ended_at_any_moment_goes_on_to_the_same_bytes(
    tmp_path: Path, moments: dict[str, int]
) -> None:
    endings = [f"{ending}:{points}" for ending, points in moments.items()]
    command = [sys.executable, "-m", "tests.export.training.killed_training", str(tmp_path), *endings]
    alone = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}  # which forks need
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=ROOT, env=os.environ | alone, timeout=500
    )
    assert done.returncode == 0, done.stderr
    counts = [int(count) for count in done.stdout.splitlines()[-1].split()]
    assert len(counts) == len(moments)
    assert min(counts) > 0, "some of each kind were ended before their end"
