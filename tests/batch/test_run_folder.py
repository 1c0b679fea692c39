from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from runtime.batch.result_files import FORMATS, RowCounts
from runtime.batch.rows import CaptionRow
from runtime.batch.run_folder import RunFolder
from runtime.errors import OptionError, PatchcaptionError

FORM = FORMATS[".jsonl"]


def folder(path: Path, **settings: object) -> RunFolder:
    return RunFolder(path / "out.jsonl", FORM, {"bundle": "b", **settings})


def write_plan(file: Path) -> None:
    file.write_text("plan")


def refuse(_: Path) -> None:
    raise AssertionError("there is a plan")


def rows(text: str) -> bytes:
    return FORM.encode([CaptionRow(text)])


def start(path: Path, numbers: Sequence[int] = (0,)) -> None:
    run = folder(path)
    with run.held():
        run.plan(write_plan)
        for number in numbers:
            run.add(number, rows(f"{number}.jpg"))


def test_parts_become_the_results(tmp_path: Path) -> None:
    run = folder(tmp_path)
    with run.held():
        assert run.plan(write_plan).read_text() == "plan"
        run.add(1, rows("b.jpg"))
        run.add(0, rows("a.jpg"))
        assert run.done() == {0, 1}
        assert run.finish(2, "digest") == RowCounts(2)
    assert run.out.read_bytes() == rows("a.jpg") + rows("b.jpg")
    assert {file.name for file in tmp_path.iterdir()} == {"out.jsonl", "out.jsonl.run.json"}


def test_a_run_goes_on_from_its_parts_and_its_plan(tmp_path: Path) -> None:
    start(tmp_path, [0, 2])
    run = folder(tmp_path)
    with run.held():
        assert run.plan(refuse).read_text() == "plan"
        assert run.done() == {0, 2}


def test_a_run_with_other_settings_is_not_mixed_with_it(tmp_path: Path) -> None:
    start(tmp_path)
    with (
        pytest.raises(OptionError, match=r"of a run that did not come to its end, with other bundle; run it again as"),
        folder(tmp_path, bundle="c").held(),
    ):
        pass
    with folder(tmp_path).held():
        pass


def test_two_runs_at_once_do_not_write_the_same_file(tmp_path: Path) -> None:
    with folder(tmp_path).held(), pytest.raises(OptionError, match="another run writes it"), folder(tmp_path).held():
        pass


def test_a_folder_without_settings_is_begun_anew(tmp_path: Path) -> None:
    start(tmp_path)
    (tmp_path / "out.jsonl.parts" / "settings.json").unlink()  # as a run that is killed while it removes the folder
    run = folder(tmp_path)
    with run.held():
        run.plan(write_plan)
        assert run.done() == set()


def test_a_plan_that_cannot_be_made_leaves_nothing(tmp_path: Path) -> None:
    def fail(_: Path) -> None:
        raise PatchcaptionError("no images")

    run = folder(tmp_path)
    with pytest.raises(PatchcaptionError, match="no images"), run.held():
        run.plan(fail)
    assert list(tmp_path.iterdir()) == []


def test_results_are_known_by_their_plan_settings_and_size(tmp_path: Path) -> None:
    start(tmp_path)
    run = folder(tmp_path)
    with run.held():
        run.plan(refuse)
        run.finish(1, "digest")
    report = run.finished("digest")
    assert report is not None
    assert report["rows"] == 1
    assert run.finished("another") is None
    assert folder(tmp_path, mode="nearest").finished("digest") is None
    run.out.write_text("changed")
    assert run.finished("digest") is None
    run.out.unlink()
    assert run.finished("digest") is None


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "out.jsonl.parts").touch()
    with (
        pytest.raises(PatchcaptionError, match="--out .*out.jsonl: .*out.jsonl.parts: File exists"),
        folder(tmp_path).held(),
    ):
        pass
