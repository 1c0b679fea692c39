"""A build that is killed, at any point, leaves a whole bundle: the old one, or the new."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from tests.conftest import ROOT

POINTS = 20


def test_a_build_that_is_killed_at_any_of_twenty_points_leaves_a_whole_bundle(bundle_copy: Callable[[], Path]) -> None:
    folder = bundle_copy()
    command = [sys.executable, "-m", "tests.robustness.killed_build", str(folder), str(POINTS)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > POINTS
