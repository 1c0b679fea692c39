"""What a user has survives: a command that is killed, ended or starved at any point loses and spoils nothing."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.children import run_module

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
    module, endings = "tests.robustness.killed_outputs", ",".join(ENDINGS)
    printed = run_module(module, command, endings, str(POINTS), demo_bundle, tmp_path)
    assert int(printed) > 0, "some of the runs were ended while they wrote"
