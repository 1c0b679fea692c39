"""A run that is ended at any point, in any way, goes on where it was, and gives the same rows once."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

POINTS = 30 if os.environ.get("PATCHCAPTION_ENDURANCE") == "1" else 2
"""Of each ending."""
ENDINGS = ("kill", "term", "int", "full")


@pytest.mark.slow
def test_a_run_that_was_ended_goes_on_and_gives_the_same_rows_once(demo_bundle: Path, tmp_path: Path) -> None:
    arguments = [",".join(ENDINGS), str(POINTS), str(demo_bundle), str(tmp_path)]
    done = subprocess.run(
        [sys.executable, "-m", "tests.batch.killed_batch", *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.splitlines()[-1]) > POINTS
