"""A training that is ended at any moment is gone on with, to the same bytes as one that never was."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

SLOW = [("TIME", 20), ("SIGKILL", 20), ("SIGTERM", 4), ("SIGHUP", 4), ("SIGINT", 4), ("FULL", 10)]


@pytest.mark.parametrize(
    ("ending", "points"), [("SIGKILL", 3), *(pytest.param(*one, marks=pytest.mark.slow) for one in SLOW)]
)
def test_a_training_that_is_ended_at_any_moment_goes_on_to_the_same_bytes(
    tmp_path: Path, ending: str, points: int
) -> None:
    command = [sys.executable, "-m", "tests.export.training.killed_training", str(tmp_path), ending, str(points)]
    alone = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}  # which forks need
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=ROOT, env=os.environ | alone, timeout=500
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[-1]) > 0, "some were ended before their end"
