"""A run that is ended at any point, in any way, goes on where it was, and gives the same rows once."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.children import run_module

POINTS = 30 if os.environ.get("PATCHCAPTION_ENDURANCE") == "1" else 2
"""Of each ending."""
ENDINGS = ("kill", "term", "int", "full")


@pytest.mark.slow
def test_a_run_that_was_ended_goes_on_and_gives_the_same_rows_once(demo_bundle: Path, tmp_path: Path) -> None:
    printed = run_module("tests.batch.killed_batch", ",".join(ENDINGS), str(POINTS), demo_bundle, tmp_path)
    assert int(printed.splitlines()[-1]) > POINTS
