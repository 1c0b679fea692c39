"""The saved state of a training: whole or not at all, whatever the disk does."""

from __future__ import annotations

import errno
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from export.checkpoint import CheckpointError
from export.training.state import SavedState, save_whole
from tests.children import run_child

CONTENTS = {"weights": torch.arange(100_000.0), "more": [torch.ones(3), "text"]}

FULL = """
import resource, sys
from pathlib import Path
import torch
from export.training.state import save_whole

path = Path(sys.argv[1])
contents = {"weights": torch.arange(100_000.0), "more": [torch.ones(3), "text"]}
for limit in (0, 1, 63, 4096, 65_536, 262_144, 400_000, 400_500, 401_000):
    path.write_bytes(b"older")
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        save_whole(path, contents)
    except OSError as error:
        print(limit, error.strerror, path.read_bytes(), len(list(path.parent.iterdir())))
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
save_whole(path, contents)
print(torch.load(path, weights_only=True)["weights"].sum().item())
"""


class Part:
    def __init__(self) -> None:
        self.state: Mapping[str, Any] = {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if "spoilt" in state:
            raise RuntimeError("size mismatch\nand more")
        self.state = state


def test_a_file_that_the_disk_has_no_room_for_leaves_the_older_one(tmp_path: Path) -> None:
    done = run_child(FULL, tmp_path / "state.pt")
    assert done.returncode == 0, done.stderr
    *failed, last = done.stdout.splitlines()
    assert last == str(float(torch.arange(100_000.0).sum()))
    assert len(failed) == 9
    assert all(line.endswith("File too large b'older' 1") for line in failed), failed


@pytest.mark.parametrize("failure", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_what_ends_writing_is_what_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: BaseException
) -> None:
    writes = 0

    class Failing:
        def __init__(self, file: Any) -> None:
            self.failure: BaseException | None = None
            self.file = file

        def write(self, data: bytes) -> int:
            nonlocal writes
            writes += 1
            if writes == 3:
                raise failure
            return int(self.file.write(data))

        def flush(self) -> None:
            self.file.flush()

    opened = Path.open
    monkeypatch.setattr(
        Path, "open", lambda path, mode: Handle(Failing(opened(path, mode))) if mode == "wb" else opened(path, mode)
    )
    with pytest.raises(type(failure)):
        save_whole(tmp_path / "state.pt", CONTENTS)
    assert list(tmp_path.iterdir()) == []


class Handle:
    def __init__(self, failing: Any) -> None:
        self.failing = failing

    def __enter__(self) -> Any:
        return self.failing

    def __exit__(self, *_: object) -> None:
        self.failing.file.close()


def test_a_full_disk_is_noted_and_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    notes: list[str] = []
    saved = SavedState(tmp_path, 0, notes.append)
    with monkeypatch.context() as patch:
        patch.setattr("torch.save", raises(OSError(errno.ENOSPC, "No space left on device")))
        saved.save_if_due(lambda: {"part": {"step": 1}})
    assert notes == [
        f"{tmp_path}/state.pt: cannot be saved: No space left on device; training goes on, and tries again"
    ]
    saved.save_if_due(lambda: {"part": {"step": 2}})
    part = Part()
    saved.load_into(part=part)
    assert part.state == {"step": 2}
    assert len(notes) == 1


def raises(error: Exception) -> Any:
    def save(_: object, file: Any) -> None:
        file.failure = error
        raise RuntimeError("[enforce fail at inline_container.cc:860] . PytorchStreamWriter failed writing file data/0")

    return save


def test_a_state_is_saved_only_when_it_is_due(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([100.0, 159.0, 160.0, 161.0, 219.0])
    monkeypatch.setattr("time.monotonic", lambda: next(clock))
    saved, part = SavedState(tmp_path, 60, print), Part()
    for step in range(3):
        saved.save_if_due(lambda step=step: {"part": {"step": step}})  # type: ignore[misc]
    saved.load_into(part=part)
    assert part.state == {"step": 1}


def test_a_run_that_begins_has_no_state(tmp_path: Path) -> None:
    part = Part()
    SavedState(tmp_path, 0, print).load_into(part=part)
    assert part.state == {}


@pytest.mark.parametrize("contents", [b"", b"no file of torch", {"other": {}}, {"part": {"spoilt": 1}}])
def test_a_state_that_cannot_be_used_is_one_line_with_what_to_do(tmp_path: Path, contents: Any) -> None:
    if isinstance(contents, bytes):
        (tmp_path / "state.pt").write_bytes(contents)
    else:
        save_whole(tmp_path / "state.pt", contents)
    with pytest.raises(CheckpointError) as caught:
        SavedState(tmp_path, 0, print).load_into(part=Part())
    assert str(caught.value).startswith(f"{tmp_path}/state.pt: cannot be read: ")
    assert str(caught.value).endswith("; remove it to train from the beginning")
    assert "\n" not in str(caught.value)


def test_a_state_with_code_in_it_is_not_run(tmp_path: Path) -> None:
    torch.save({"part": Part}, tmp_path / "state.pt")
    with pytest.raises(CheckpointError, match="cannot be read"):
        SavedState(tmp_path, 0, print).load_into(part=Part())


def test_what_killed_runs_left_of_files_is_removed(tmp_path: Path) -> None:
    for name in ("state.part-0123456789abcdef.pt", "decoder.part-0123456789abcdef.pt", "state.pt", "bank.h5"):
        (tmp_path / name).write_bytes(b"")
    SavedState(tmp_path, 0, print).remove_parts()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bank.h5", "state.pt"]
