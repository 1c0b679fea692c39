"""What a user has survives: a command that is killed, ended or starved at any point loses and spoils nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

IS_ENDURANCE = os.environ.get("PATCHCAPTION_ENDURANCE") == "1"
POINTS = 30 if IS_ENDURANCE else 2
"""Of each ending."""
ENDINGS = ("kill", "term", "hup", "int", "pipe", "full")
COMMANDS = ("mp4", "caption", "mkv", "mov", "avi") if IS_ENDURANCE else ("mp4", "caption")


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_what_was_written_is_readable_and_nothing_older_is_lost(
    demo_bundle: Path, tmp_path: Path, command: str
) -> None:
    arguments = [command, ",".join(ENDINGS), str(POINTS), str(demo_bundle), str(tmp_path)]
    done = subprocess.run(
        [sys.executable, "-m", "tests.robustness.killed_outputs", *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 0, "some of the runs were ended while they wrote"
