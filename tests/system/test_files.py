"""Files that are written whole or not at all."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from runtime import PatchcaptionError
from runtime.system.files import temporary_beside, write_atomically
from runtime.system.outputs import Output
from tests.conftest import ROOT


def test_a_file_is_there_once_it_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    path.write_text("before")
    with write_atomically(path) as part:
        part.write_text("after")
        assert path.read_text() == "before"
        assert (part.parent, part.suffix) == (path.parent, path.suffix)
    assert path.read_text() == "after"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("fault", [OSError(28, "No space left on device"), ValueError("no"), KeyboardInterrupt()])
def test_a_file_that_fails_halfway_leaves_what_was_there(tmp_path: Path, fault: BaseException) -> None:
    path = tmp_path / "run.json"
    path.write_text("before")

    def write_half() -> None:
        with write_atomically(path) as part:
            part.write_text("half")
            raise fault

    with pytest.raises(type(fault)):
        write_half()
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


def test_an_output_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    def write(path: Path) -> None:
        Output(path).write(b"whole")

    with pytest.raises(PatchcaptionError, match="nowhere/run.json: cannot be written: No such file or directory$"):
        write(tmp_path / "nowhere" / "run.json")
    (tmp_path / "folder").mkdir()
    with pytest.raises(PatchcaptionError, match="folder: cannot be written: Is a directory$"):
        write(tmp_path / "folder")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


@pytest.mark.parametrize(("umask", "mode"), [("022", 0o644), ("077", 0o600), ("002", 0o664)])
def test_permissions_are_those_of_any_new_file(tmp_path: Path, umask: str, mode: int) -> None:
    code = (
        "from pathlib import Path; from runtime.system.files import write_atomically\n"
        "with write_atomically(Path('run.json')) as part: part.write_text('{}')"
    )
    command = f'umask {umask} && cd {tmp_path} && exec "$0" -c "$1"'
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    subprocess.run(["sh", "-c", command, sys.executable, code], check=True, env=environment)
    assert stat.S_IMODE((tmp_path / "run.json").stat().st_mode) == mode


def test_two_writers_do_not_share_a_temporary_file(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    with temporary_beside(path) as one, temporary_beside(path) as other:
        assert one != other
        assert one.exists()
        assert other.exists()
    assert list(tmp_path.iterdir()) == []
