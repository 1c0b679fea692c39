"""A build that is ended at any point, in any way, leaves a whole bundle, the old one or the new, and nothing else."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.children import run_module

POINTS = 30 if os.environ.get("PATCHCAPTION_ENDURANCE") == "1" else 5
ENDINGS = {"SIGKILL": 20, "SIGTERM": POINTS, "SIGHUP": POINTS, "SIGINT": POINTS, "FULL": POINTS}


@pytest.mark.slow
def test_a_build_that_is_ended_at_any_point_leaves_a_whole_bundle(bundle_copy: Callable[[], Path]) -> None:
    plan = [f"{ending}={points}" for ending, points in ENDINGS.items()]
    printed = run_module("tests.robustness.killed_build", bundle_copy(), *plan)
    assert int(printed) > max(ENDINGS.values())
