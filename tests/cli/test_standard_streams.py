"""What the command does when stdout or stderr is closed, full, read no more or of few characters."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from runtime.system.standard_streams import one_line, printable
from tests.conftest import ROOT

FULL = b"patchcaption: error: stdout: cannot be written: No space left on device\n"
CLOSED = b"patchcaption: error: stdout: cannot be written: Bad file descriptor\n"


def run(command: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[bytes]:
    """Run a shell command, in which PC is the command line of this repository."""
    command = command.replace("PC", f"{sys.executable} -m runtime")
    variables = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    return subprocess.run(["bash", "-c", command], cwd=folder, env=variables, check=False, capture_output=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("redirection", "code", "err"),
    [
        ("> /dev/full", 1, FULL),
        ("| true; exit ${PIPESTATUS[0]}", 0, b""),
        (">&-", 1, CLOSED),
        ("> /dev/full 2> /dev/full", 1, b""),
        ("<&- >&- 2>&-", 1, b""),
    ],
)
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_failure_of_stdout_is_one_line(
    demo_bundle: Path, tmp_path: Path, redirection: str, code: int, err: bytes, unbuffered: str
) -> None:
    done = run(f"PC info {demo_bundle} {redirection}", tmp_path, PYTHONUNBUFFERED=unbuffered)
    assert (done.returncode, done.stderr) == (code, err)


def test_characters_that_stdout_does_not_have_are_escapes(demo_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "é").symlink_to(demo_bundle)
    done = run("PC info é", tmp_path, PYTHONIOENCODING="ascii", PYTHONUTF8="0")
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.splitlines()[0] == rb"bundle      \xe9"


def test_what_terminals_act_on_is_escaped() -> None:
    assert printable("a\x1b[2Jb\x9bc\x00\u2028é\ud800\n") == r"a\x1b[2Jb\x9bc\x00\u2028é\ud800" + "\n"
    assert printable("\u202eexe.\u2066\u2069 שלום") == r"\u202eexe.\u2066\u2069 שלום"
    assert one_line("a\nb") == r"a\nb"
