"""What the user named for results: a file, a pipe, a device or stdout.

A regular file is replaced only by one that is complete. Until then results are written beside it, to a file named
NAME.part-TOKEN.SUFFIX: a program that is killed leaves that, and what was there before stays. Anything else is written
to as it is.
"""

from __future__ import annotations

import glob
import io
import os
import re
import stat
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from runtime.errors import OptionError, PatchcaptionError
from runtime.system.files import follow_links, is_file, lock, move_into_place, open_part, part_name, write_atomically
from runtime.system.signals import uninterrupted

STDOUT = "-"
_OPEN_FILES = re.compile(r"/proc/(\d+)(/task/\d+)?/fd")
"""The folder in which a process has links to what it has opened: /dev/stdout leads there."""

Note = Callable[[str], object]
"""Tells the user something that is no error."""


class Output:
    """A place for results, by the name that the user gave it; "-" is stdout, "./-" a file."""

    def __init__(self, name: str | os.PathLike[str]) -> None:
        self._name = os.fspath(name)

    def __str__(self) -> str:
        return "stdout" if self.is_stdout else self._name

    @property
    def is_stdout(self) -> bool:
        return self._name == STDOUT

    @property
    def suffix(self) -> str:
        """The ending of the file's name, in lower case, with its dot."""
        return Path(self._name).suffix.lower()

    @property
    def is_file(self) -> bool:
        """Whether it is a regular file, or will be one.

        Raises:
            PatchcaptionError: it cannot be written.
        """
        with self.errors():
            return self._file() is not None

    def check(self) -> None:
        """Find out before the work whether results can be written after it.

        Raises:
            PatchcaptionError: they cannot.
        """
        with self.errors():
            target = self._file()
        if target is None:
            return
        if not target.parent.is_dir():
            raise PatchcaptionError(f"{self}: the folder {target.parent} does not exist")
        for path in (target.parent, target):
            if path.exists() and not os.access(path, os.W_OK):
                raise PatchcaptionError(f"{self}: cannot be written: {path} is write-protected")
        if target.exists() and not _may_replace(target):
            raise PatchcaptionError(f"{self}: cannot be written: it is another user's")

    def write(self, data: bytes) -> None:
        """Write results whole or not at all.

        Raises:
            PatchcaptionError: they cannot be written.
            BrokenPipeError: the reader of a pipe has gone.
        """
        with self.errors():
            target = self._file()
            if target is None:
                with self._stream() as stream:
                    write_whole(stream, data)
                return
            with write_atomically(target) as part:
                part.write_bytes(data)

    @contextmanager
    def growing(self, note: Note) -> Iterator[BinaryIO]:
        """Yield a file without a buffer for results that come one after another, and keep what was written.

        At the end of the block the file takes its place. After an exception it does so only where nothing was; else it
        stays beside what was there. A file without content is removed.

        Args:
            note: is told where to find what did not take its place, now or after an earlier run.

        Raises:
            PatchcaptionError: it cannot be written.
        """
        self.check()
        with self.errors():
            target = self._file()
        if target is None:
            with self._stream() as stream, suppress(BrokenPipeError):
                yield stream
            return
        for part in _leftovers(target):
            note(f"{part}: an earlier run that did not come to its end has left it")
        with self.errors():
            part, descriptor = open_part(target)
        with io.FileIO(descriptor, "w+") as file:
            with suppress(OSError):
                lock(descriptor)
            try:
                yield file
                with uninterrupted(), self.errors():
                    _put_in_place(part, target)
            except BaseException:
                with uninterrupted():
                    self._keep(part, target, note)
                raise

    @contextmanager
    def errors(self) -> Iterator[None]:
        """Turn a failure to write into one line that names this output; a reader that left is BrokenPipeError."""
        try:
            yield
        except BrokenPipeError:
            raise
        except OSError as error:
            raise PatchcaptionError(f"{self}: cannot be written: {error.strerror or error}") from None

    def _keep(self, part: Path, target: Path, note: Note) -> None:
        """Keep what was written before an exception, which is on its way."""
        with suppress(OSError):
            if not part.exists():  # it came after the end
                return
            if not part.stat().st_size:
                part.unlink()
                return
            if not target.exists():
                part.rename(target)
                return
        note(f"{self} is as it was; what was written is in {part}")

    def _file(self) -> Path | None:
        """Return the regular file that results replace or become; None for what is written to as it is."""
        if self.is_stdout or _open_file(Path(self._name)) is not None:
            return None
        path = follow_links(Path(self._name))
        with suppress(FileNotFoundError):
            mode = path.stat().st_mode
            if stat.S_ISDIR(mode):
                raise IsADirectoryError(0, "Is a directory")
            return path if stat.S_ISREG(mode) else None
        return path

    @contextmanager
    def _stream(self) -> Iterator[BinaryIO]:
        """Open what is written to as it is."""
        if self.is_stdout:
            yield sys.stdout.buffer
            return
        opened = _open_file(Path(self._name))
        with self.errors():  # O_APPEND: of a file that is another program's output, nothing is lost
            flags = os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC
            file = io.FileIO(os.open(self._name, flags) if opened is None else os.dup(opened), "w")
        with file:
            yield file

    def status(self) -> os.stat_result | None:
        """Return what there is at its place now."""
        try:
            return os.fstat(sys.stdout.fileno()) if self.is_stdout else Path(self._name).stat()
        except (OSError, ValueError):
            return None

    def is_same(self, other: Output) -> bool:
        """Return whether two outputs would be written into each other; devices such as /dev/null take any number."""
        if self.is_stdout and other.is_stdout:
            return True
        found = self.status(), other.status()
        if found[0] is not None and found[1] is not None:
            return os.path.samestat(found[0], found[1]) and not stat.S_ISCHR(found[0].st_mode)
        return found == (None, None) and os.path.realpath(self._name) == os.path.realpath(other._name)


def _put_in_place(part: Path, target: Path) -> None:
    if part.stat().st_size:
        move_into_place(part, target)
    else:
        part.unlink()


def write_whole(file: BinaryIO, data: bytes) -> None:
    """Write all of ``data`` to a file, which may take less at once.

    Raises:
        OSError: it takes no more.
    """
    rest = memoryview(data)
    while rest:
        rest = rest[file.write(rest) :]
    file.flush()


def check_distinct(outputs: Mapping[str, Output | None], inputs: Sequence[Path]) -> None:
    """Raise if two outputs are one file, or an output is a file that is read.

    Args:
        outputs: by the flag that names each.
        inputs: files; what is not there, or no regular file, is passed over.

    Raises:
        OptionError: names the flags.
    """
    named = [(flag, output) for flag, output in outputs.items() if output is not None]
    for index, (flag, output) in enumerate(named):
        for other_flag, other in named[:index]:
            if output.is_same(other):
                raise OptionError(f"{flag} {output}: {other_flag} writes there too; name another file")
        for path in inputs:
            if is_file(path) and output.is_same(Output(path.absolute())):
                raise OptionError(f"{flag} {output}: {path} is read, and would be overwritten; name another file")


def _open_file(path: Path) -> int | None:
    """Return the descriptor of this process that a path leads to, such as 1 for /dev/stdout; None for other paths."""
    for _ in range(8):
        if (found := _OPEN_FILES.fullmatch(os.path.realpath(path.parent))) and path.name.isdecimal():
            return int(path.name) if int(found[1]) == os.getpid() else None
        if not path.is_symlink():
            return None
        path = path.parent / path.readlink()
    return None


def _may_replace(path: Path) -> bool:
    """Return whether this user may rename over a file: in a folder like /tmp only the owner of either may."""
    folder, user = path.parent.stat(), os.geteuid()
    return not folder.st_mode & stat.S_ISVTX or user in (0, folder.st_uid, path.stat().st_uid)


def _leftovers(target: Path) -> list[Path]:
    """Return the parts with content that runs have left beside ``target`` which do not run any more."""
    pattern = part_name(target.with_name(glob.escape(target.name)), "*").name
    return [part for part in sorted(target.parent.glob(pattern)) if _is_left(part)]


def _is_left(part: Path) -> bool:
    """Return whether nobody writes a part: who does has locked it until the process ends, however that ends."""
    try:
        with io.FileIO(os.open(part, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)) as file:
            return os.fstat(file.fileno()).st_size > 0 and lock(file.fileno())
    except OSError:
        return False
