"""Folders of unfinished work: a command that was interrupted goes on with what lies there, if its job is the same."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

from export.checkpoint import CheckpointError
from runtime.system.files import lock
from runtime.system.user_dirs import is_private

_MARK = "job.txt"


def work_dir_of(out: Path) -> Path:
    """Return the folder of what is not finished yet of a file: hidden, beside it."""
    return out.with_name(f".{out.name}.part")


@contextmanager
def claimed(work_dir: Path, fingerprint: str, job: str) -> Iterator[None]:
    """Make the folder of unfinished work, or take over that of an interrupted run of the same job; keep others out.

    A folder that nothing was put into is removed at the end.

    Args:
        fingerprint: the same for the same job, and for no other.
        job: what the fingerprint is made of, for the message.

    Raises:
        CheckpointError: it was begun by another job, another run is at work there, or others can write there.
        OSError: it cannot be made.
    """
    mark = work_dir / _MARK
    work_dir.mkdir(mode=0o700, exist_ok=True)  # its name is known, so that the work can be resumed
    if not is_private(work_dir, work_dir):
        raise CheckpointError(f"{work_dir}: another user can write there, and this command writes there; remove it")
    with mark.open("a+", encoding="utf-8") as file:
        if not lock_if_possible(file.fileno()):
            raise CheckpointError(f"{work_dir}: another run is at work there; wait for its end")
        _check_job(file, work_dir, fingerprint, job)
        try:
            yield
        finally:
            with suppress(OSError):
                if _is_empty(work_dir):
                    shutil.rmtree(work_dir)


def remove_work(work_dir: Path) -> None:
    """Remove the folder when the job is done; what says which job it was goes last."""
    for path in work_dir.iterdir():
        if path.name == _MARK:
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    shutil.rmtree(work_dir)


def lock_if_possible(descriptor: int) -> bool:
    """Lock an open file; return False if another process has. A file system without locks has none to respect."""
    try:
        return lock(descriptor)
    except OSError:
        return True


def _check_job(file: TextIO, work_dir: Path, fingerprint: str, job: str) -> None:
    """Write down what the job is, or compare it with what an earlier run has written."""
    file.seek(0)
    begun = file.read()
    if not fingerprint.startswith(begun) and _is_empty(work_dir):
        file.truncate(0)  # of a job that was done, and its removal interrupted
        begun = ""
    if not fingerprint.startswith(begun):
        raise CheckpointError(f"{work_dir}: it was begun with {job}; finish it with those, or remove it")
    file.write(fingerprint[len(begun) :])  # all of it; or the rest, of a run that was killed while it wrote
    file.flush()


def _is_empty(work_dir: Path) -> bool:
    """Return whether nothing is in the folder but what says which job it is for."""
    return all(path.name == _MARK for path in work_dir.iterdir())
