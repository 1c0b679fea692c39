"""Where results go: files that are replaced when complete, links that are followed, pipes and devices, stdout."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from threading import Thread

import pytest

from runtime import PatchcaptionError
from runtime.system import outputs
from runtime.system.outputs import Output, check_distinct, write_whole
from tests.conftest import ROOT


def grow(output: Output, *records: bytes, fault: BaseException | None = None) -> list[str]:
    """Write records one after another, and end so; return the notes."""
    notes: list[str] = []
    expected = nullcontext() if fault is None else pytest.raises(type(fault))
    with expected, output.growing(notes.append) as file:
        for record in records:
            write_whole(file, record)
        if fault is not None:
            raise fault
    return notes


def in_child(code: str, folder: Path, shell: str = 'exec "$0" -c "$1"') -> subprocess.CompletedProcess[bytes]:
    """Run Python code in a folder, from a shell that may redirect its output."""
    code = "from runtime.system.outputs import Output\n" + code
    command = ["sh", "-c", shell, sys.executable, code]
    return subprocess.run(
        command, cwd=folder, env=os.environ | {"PYTHONPATH": str(ROOT)}, check=False, capture_output=True
    )


def test_what_grows_can_be_read_meanwhile_and_takes_its_place_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    path.write_text("old")
    with Output(path).growing(print) as file:
        write_whole(file, b"one\n")
        (part,) = tmp_path.glob("lines.part-*.jsonl")
        assert (part.read_text(), path.read_text()) == ("one\n", "old")
        write_whole(file, b"two\n")
    assert path.read_text() == "one\ntwo\n"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("fault", [KeyboardInterrupt(), ValueError("no"), OSError(28, "No space left on device")])
def test_what_was_written_is_kept_beside_what_was_there(tmp_path: Path, fault: BaseException) -> None:
    path = tmp_path / "lines.jsonl"
    path.write_text("old")
    (note,) = grow(Output(path), b"one\n", fault=fault)
    (part,) = tmp_path.glob("lines.part-*.jsonl")
    assert (part.read_text(), path.read_text()) == ("one\n", "old")
    assert note == f"{path} is as it was; what was written is in {part}"
    (note,) = grow(Output(path), b"all\n")
    assert note == f"{part}: an earlier run that did not come to its end has left it"
    assert (part.read_text(), path.read_text()) == ("one\n", "all\n")


def test_what_was_written_takes_its_place_where_nothing_was(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    assert grow(Output(path), b"one\n", fault=KeyboardInterrupt()) == []
    assert path.read_text() == "one\n"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("is_after", [False, True])
def test_an_interruption_between_the_last_record_and_the_end_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_after: bool
) -> None:
    """Before interruptions are held back, or once they are let come again."""
    entries: list[None] = []

    @contextmanager
    def interrupted() -> Iterator[None]:
        entries.append(None)
        if len(entries) == 1 and not is_after:
            raise KeyboardInterrupt
        yield
        if len(entries) == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(outputs, "uninterrupted", interrupted)
    path, notes = tmp_path / "lines.jsonl", list[str]()
    with pytest.raises(KeyboardInterrupt), Output(path).growing(notes.append) as file:
        write_whole(file, b"one\n")
    assert (path.read_text(), list(tmp_path.iterdir()), notes) == ("one\n", [path], [])


@pytest.mark.parametrize("fault", [None, KeyboardInterrupt()])
def test_a_run_that_writes_nothing_leaves_what_was_there(tmp_path: Path, fault: BaseException | None) -> None:
    path = tmp_path / "lines.jsonl"
    path.write_text("old")
    assert grow(Output(path), fault=fault) == []
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_two_runs_into_one_file_do_not_mix(tmp_path: Path) -> None:
    path, notes = tmp_path / "lines.jsonl", list[str]()
    with Output(path).growing(notes.append) as one, Output(path).growing(notes.append) as other:
        for number in range(3):
            write_whole(one, b"a%d\n" % number)
            write_whole(other, b"b%d\n" % number)
    assert notes == [], "a part that somebody writes is no leftover"
    assert path.read_text() == "a0\na1\na2\n", "the one that ended last"
    assert list(tmp_path.iterdir()) == [path]


def write_once(output: Output) -> None:
    output.write(b"new")


def write_growing(output: Output) -> None:
    assert grow(output, b"new") == []


WRITERS = pytest.mark.parametrize("write", [write_once, write_growing])
Write = Callable[[Output], None]


@WRITERS
def test_links_are_followed_and_stay(tmp_path: Path, write: Write) -> None:
    (tmp_path / "elsewhere").mkdir()
    target, link = tmp_path / "elsewhere" / "real.json", tmp_path / "run.json"
    (tmp_path / "middle").symlink_to("elsewhere/real.json")
    link.symlink_to("middle")
    for _ in range(2):  # a link to what is not there yet, and to what is
        write(Output(link))
        assert link.is_symlink()
        assert target.read_text() == "new"
        assert [path.name for path in target.parent.iterdir()] == ["real.json"]
    link.unlink()
    link.symlink_to(link.name)
    with pytest.raises(PatchcaptionError, match="run.json: cannot be written: Too many levels of symbolic links"):
        write(Output(link))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make another user's link")
@WRITERS
def test_a_link_that_another_user_has_put_into_a_shared_folder_is_not_followed(tmp_path: Path, write: Write) -> None:
    shared, mine = tmp_path / "shared", tmp_path / "mine"
    shared.mkdir()
    shared.chmod(0o1777)
    mine.write_text("old")
    (shared / "run.json").symlink_to(mine)
    os.chown(shared / "run.json", 12345, 12345, follow_symlinks=False)
    with pytest.raises(PatchcaptionError, match="run.json: cannot be written: Permission denied|link of another user"):
        write(Output(shared / "run.json"))
    assert mine.read_text() == "old"


@WRITERS
def test_a_link_beside_an_output_is_not_written_through(tmp_path: Path, write: Write) -> None:
    (tmp_path / "victim").write_text("old")
    for name in (".run.json.part", ".run.part.json", "run.part-.json", ".run.json.part.json"):
        (tmp_path / name).symlink_to("victim")
    write(Output(tmp_path / "run.json"))
    assert (tmp_path / "victim").read_text() == "old"


@WRITERS
def test_a_file_keeps_its_permissions(tmp_path: Path, write: Write) -> None:
    path = tmp_path / "run.json"
    path.write_text("old")
    path.chmod(0o640)
    write(Output(path))
    assert (stat.S_IMODE(path.stat().st_mode), path.read_text()) == (0o640, "new")


@WRITERS
def test_a_pipe_is_written_to_and_stays(tmp_path: Path, write: Write) -> None:
    path, got = tmp_path / "pipe", list[bytes]()
    os.mkfifo(path)
    reader = Thread(target=lambda: got.append(path.read_bytes()))
    reader.start()
    write(Output(path))
    reader.join()
    assert got == [b"new"]
    assert path.is_fifo()
    assert list(tmp_path.iterdir()) == [path]


@WRITERS
def test_a_device_is_written_to_and_stays(tmp_path: Path, write: Write) -> None:
    link = tmp_path / "nowhere"
    link.symlink_to("/dev/null")
    write(Output(link))
    assert Path("/dev/null").is_char_device()
    with pytest.raises(PatchcaptionError, match="^/dev/full: cannot be written: No space left on device$"):
        Output("/dev/full").write(b"new")


def test_stdout_is_written_to_whatever_it_is(tmp_path: Path) -> None:
    code = """
for name in ("-", "/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"):
    Output(name).write(b"whole ")
    with Output(name).growing(print) as file:
        file.write(b"grown ")
        file.flush()
"""
    expected = "whole grown " * 4
    assert in_child(code, tmp_path).stdout.decode() == expected
    (tmp_path / "log").write_text("old ")
    done = in_child(code, tmp_path, 'exec "$0" -c "$1" >> log')
    assert (done.stderr, (tmp_path / "log").read_text()) == (b"", f"old {expected}")
    assert [path.name for path in tmp_path.iterdir()] == ["log"]


def test_a_file_may_be_named_like_the_sign_for_stdout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Output("./-").write(b"new")
    assert (tmp_path / "-").read_text() == "new"


def test_what_cannot_be_written_is_found_out_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for name, message in (
        ("nowhere/run.json", "the folder .*nowhere does not exist"),
        ("file/run.json", "cannot be written: Not a directory"),
        (".", "cannot be written: Is a directory"),
    ):
        with pytest.raises(PatchcaptionError, match=message):
            Output(tmp_path / name).check()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everything")
def test_what_is_write_protected_is_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    path.touch(0o444)
    with pytest.raises(PatchcaptionError, match="run.json is write-protected"):
        Output(path).check()


def test_outputs_that_are_one_file_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        Path(name).write_text(name)
    Path("link").symlink_to("a")
    Path("hard").hardlink_to("a")
    Path("dangling").symlink_to("new")
    os.mkfifo("pipe")

    def check(one: str, other: str, *inputs: str) -> None:
        check_distinct({"--save": Output(one), "--jsonl": Output(other)}, [Path(name) for name in inputs])

    for one, other in (
        ("a", "a"),
        ("a", "./a"),
        ("a", "link"),
        ("a", "hard"),
        ("new", "dangling"),
        ("-", "-"),
        ("pipe", "pipe"),
    ):
        with pytest.raises(PatchcaptionError, match="^--jsonl .*: --save writes there too; name another file$"):
            check(one, other)
    for source in ("a", "link", "hard"):
        with pytest.raises(
            PatchcaptionError, match=f"^--jsonl a: {source} is read, and would be overwritten; name another"
        ):
            check("new", "a", source)
    check("a", "b", "gone", ".", "/dev/null")
    check("/dev/null", "/dev/null", "a")
    check_distinct({"--save": None}, [Path("a")])
