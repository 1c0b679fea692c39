"""The log of an evaluation: a line of JSON for each image that is done, from which the same evaluation goes on.

The first line is the job: all that the captions depend on. What follows the last line break is what a killed run could
not finish, and is cut off.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeAlias

from pydantic import TypeAdapter, ValidationError

from benchmarks.scoring.predictions import PredictedImage
from export.unfinished_work import lock_if_possible
from runtime import PatchcaptionError
from runtime.system.files import follow_links
from runtime.system.outputs import write_whole

Job: TypeAlias = Mapping[str, Any]
"""What the captions depend on, by names for the user, as JSON has it."""

Places: TypeAlias = dict[str, tuple[int, int]]
"""Where the lines of images lie in a log, by image id: offset and length in bytes."""

_JOB = "evaluation"
_LINE = TypeAdapter(PredictedImage)


class EvaluationLogError(PatchcaptionError):
    """A log that is another job's, that another run is writing, or that cannot be written."""


class PredictionLog:
    """The images that are done; in memory there is only where each lies in the file."""

    def __init__(self, path: Path, file: io.FileIO, places: Places) -> None:
        self.path = path
        self._file, self._places = file, places

    def __contains__(self, image: str) -> bool:
        return image in self._places

    def __len__(self) -> int:
        return len(self._places)

    def append(self, image: PredictedImage) -> None:
        """Write down an image that is done.

        Raises:
            EvaluationLogError: the disk is full or cannot be written to; what was written before is kept.
        """
        line = _LINE.dump_json(image) + b"\n"
        offset = self._file.seek(0, os.SEEK_END)
        with _errors(self.path):
            write_whole(self._file, line)
        self._places[image.id] = offset, len(line)

    def read(self, image: str) -> PredictedImage:
        """Return what was written of an image that is done."""
        offset, length = self._places[image]
        return _LINE.validate_json(os.pread(self._file.fileno(), length, offset))

    def remove(self) -> None:
        """Remove the file, whose contents have got to where they are kept."""
        with suppress(OSError):
            self.path.unlink()


@contextmanager
def open_log(path: Path, job: Job) -> Iterator[PredictionLog]:
    """Open the log of a job, begun by an earlier run or not, and keep other runs out of it until the end of the block.

    Raises:
        EvaluationLogError: the file is another job's or another program's, another run is at work there, or it cannot
            be written.
    """
    with _errors(path):
        path = follow_links(path)
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(path, flags, 0o666)
    with io.FileIO(descriptor, "r+") as file:
        if not lock_if_possible(descriptor):
            raise EvaluationLogError(f"{path}: another run is at work there; wait for its end")
        with _errors(path):
            places = _read_or_begin(file, path, job)
        yield PredictionLog(path, file, places)


def _read_or_begin(file: io.FileIO, path: Path, job: Job) -> Places:
    """Return where each image is that is done; cut off a torn end, and write the first line of a new log."""
    first_line = json.dumps({_JOB: job}).encode() + b"\n"
    lines = _whole_lines(file)
    header = next(lines, None)
    if header is None:
        file.seek(0)
        if not first_line.startswith(file.readall()):
            raise _foreign(path)
        file.truncate(0)
        file.seek(0)
        write_whole(file, first_line)
        return {}
    _check_job(header[1], path, json.loads(first_line)[_JOB])
    places, end = Places(), len(header[1])
    for offset, line in lines:
        places[_image_of(line, len(places), path)] = offset, len(line)
        end = offset + len(line)
    file.truncate(end)
    return places


def _whole_lines(file: io.FileIO) -> Iterator[tuple[int, bytes]]:
    """Yield the lines of a file that have an end, each after its offset."""
    file.seek(0)
    offset = 0
    with open(file.fileno(), "rb", closefd=False) as stream:
        for line in stream:
            if line.endswith(b"\n"):
                yield offset, line
            offset += len(line)


def _image_of(line: bytes, number: int, path: Path) -> str:
    try:
        return _LINE.validate_json(line).id
    except ValidationError:
        raise EvaluationLogError(
            f"{path}: line {number + 2} is not what an image's line is; remove that line, or the file"
        ) from None


def _check_job(line: bytes, path: Path, job: Job) -> None:
    try:
        begun = json.loads(line)[_JOB]
        names = [name for name in {**begun, **job} if begun.get(name) != job.get(name)]
    except (ValueError, KeyError, TypeError, AttributeError):
        raise _foreign(path) from None
    if names:
        changed = ", ".join(names)
        raise EvaluationLogError(
            f"{path}: it was begun with another {changed}; finish it with that, or remove it to begin anew"
        )


def _foreign(path: Path) -> EvaluationLogError:
    return EvaluationLogError(f"{path}: another program has written it, and this command would append to it; remove it")


@contextmanager
def _errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise EvaluationLogError(f"{path}: cannot be written: {error.strerror or error}") from None
