"""What a run leaves on the way to its results: a folder of parts, from which the same run goes on later.

NAME.parts has the plan, a file for each part that is done, and the settings. These are written last of all that a run
needs to go on, and removed first: a folder without them is begun anew. At the end the parts are joined to NAME, and
NAME.run.json says what it is of.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from runtime.batch.result_files import ResultFormat, RowCounts
from runtime.errors import OptionError, PatchcaptionError
from runtime.system.files import lock, move_into_place, write_atomically
from runtime.system.signals import uninterrupted

_SETTINGS, _PLAN, _UNFINISHED = "settings.json", "plan.sqlite", "unfinished"


class RunFolder:
    """The folder of a run, held by one process.

    Args:
        out: the file of results, which the folder stands beside.
        settings: what the rows depend on, as JSON values.
    """

    def __init__(self, out: Path, result_format: ResultFormat, settings: Mapping[str, Any]) -> None:
        self.out, self._format, self._settings = out, result_format, json.loads(json.dumps(settings))
        self.path = out.with_name(f"{out.name}.parts")
        self._report = out.with_name(f"{out.name}.run.json")

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold the folder in this block; make it if there is none.

        Raises:
            OptionError: another process holds it, or a run with other settings has left it.
            PatchcaptionError: it cannot be written.
        """
        with self.errors():
            self.path.mkdir(exist_ok=True)
            descriptor = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            if not _is_locked(descriptor):
                raise OptionError(f"--out {self.out}: another run writes it ({self.path} is in use)")
            try:
                self._check_settings()
                yield
            finally:
                if not (self.path / _SETTINGS).exists():
                    shutil.rmtree(self.path, ignore_errors=True)
        finally:
            os.close(descriptor)

    def plan(self, write: Callable[[Path], None]) -> Path:
        """Return the file of the plan, which ``write`` makes unless an earlier run has.

        Raises:
            PatchcaptionError: it cannot be written.
        """
        file = self.path / _PLAN
        if not (self.path / _SETTINGS).exists():
            self._clear()
            with self.errors(), write_atomically(file) as part:
                write(part)
            self._write_json(self.path / _SETTINGS, self._settings)
        return file

    def done(self) -> set[int]:
        """Return the numbers of the parts that are done."""
        names = (file.stem for file in self.path.glob(f"part-*{self.out.suffix}"))
        return {int(number) for name in names if (number := name.removeprefix("part-")).isdecimal()}

    def add(self, number: int, data: bytes) -> None:
        """Write a part that is done.

        Until it is whole it has a name that those who look for parts do not take for one.

        Raises:
            PatchcaptionError: it cannot be written.
        """
        unfinished = self.path / _UNFINISHED
        with self.errors():
            unfinished.write_bytes(data)
            move_into_place(unfinished, self._part(number))

    def finished(self, plan_sha256: str) -> Mapping[str, Any] | None:
        """Return the report on results that are there already, if they are those of this plan and these settings."""
        try:
            report = json.loads(self._report.read_bytes())
            is_same = report["settings"] == self._settings and report["plan_sha256"] == plan_sha256
            return report if is_same and report["bytes"] == self.out.stat().st_size else None
        except (OSError, ValueError, LookupError, TypeError):
            return None

    def finish(self, num_parts: int, plan_sha256: str) -> RowCounts:
        """Join the parts to the results, and remove them.

        Raises:
            PatchcaptionError: the results cannot be written; the parts stay.
        """
        with self.errors():
            with write_atomically(self.out) as joined:
                counts = self._format.join(map(self._part, range(num_parts)), joined)
            size = self.out.stat().st_size
        report = {"settings": self._settings, "plan_sha256": plan_sha256, "bytes": size, **asdict(counts)}
        self._write_json(self._report, report)
        self.remove()
        return counts

    def remove(self) -> None:
        """Remove the folder."""
        with uninterrupted(), self.errors():
            (self.path / _SETTINGS).unlink(missing_ok=True)
            shutil.rmtree(self.path)

    @contextmanager
    def errors(self) -> Iterator[None]:
        """Turn a failure to write into one line that names the results."""
        try:
            yield
        except OSError as error:
            where = error.filename or self.path
            raise PatchcaptionError(f"--out {self.out}: {where}: {error.strerror or error}") from None

    def _check_settings(self) -> None:
        try:
            found = json.loads((self.path / _SETTINGS).read_bytes())
        except FileNotFoundError:
            return
        except ValueError:
            found = {}
        different = [name for name in self._settings if found.get(name) != self._settings[name]]
        if different:
            raise OptionError(
                f"--out {self.out}: {self.path} is of a run that did not come to its end, with other "
                f"{', '.join(different)}; run it again as it was, or remove {self.path}"
            )

    def _clear(self) -> None:
        with self.errors():
            for file in self.path.iterdir():
                file.unlink()

    def _part(self, number: int) -> Path:
        return self.path / f"part-{number:06d}{self.out.suffix}"

    def _write_json(self, file: Path, values: Mapping[str, Any]) -> None:
        with self.errors(), write_atomically(file) as part:
            part.write_text(json.dumps(values, indent=2) + "\n")


def _is_locked(descriptor: int) -> bool:
    try:
        return lock(descriptor)
    except OSError:  # a file system without locks: who runs the same twice is not told
        return True
