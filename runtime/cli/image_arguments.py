"""The images that `caption` is given: files, folders and patterns, in the order given."""

from __future__ import annotations

import glob
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from runtime.cli import exits
from runtime.errors import ImageError
from runtime.image import IMAGE_SUFFIXES


@dataclass(frozen=True)
class ImageArguments:
    """What the command line names.

    Attributes:
        files: the files in order, and why a name stands for none.
        is_single: whether one file was named by itself, no folder and no pattern.
    """

    files: tuple[Path | ImageError, ...]
    is_single: bool

    @classmethod
    def of(cls, names: Sequence[str]) -> ImageArguments:
        """Find the files: those of a folder or a pattern in order of their names."""
        files = tuple(file for name in names for file in _files(name))
        return cls(files, len(names) == 1 and files == (Path(names[0]),))

    @property
    def paths(self) -> list[Path]:
        """The files that there are."""
        return [file for file in self.files if isinstance(file, Path)]


def _files(name: str) -> Iterator[Path | ImageError]:
    path = Path(name)
    try:
        if path.is_dir():
            yield from _images_in(path)
        elif path.exists() or not glob.has_magic(name):
            yield path
        else:
            yield from _matches(name)
    except OSError as error:
        yield ImageError(f"{name}: cannot be read: {error.strerror or error}")
    except ValueError:  # a zero in the name; whoever opens it says so
        yield path


def _matches(pattern: str) -> Iterator[Path | ImageError]:
    names = sorted(glob.glob(pattern, recursive=True))  # noqa: PTH207  # Path.glob takes no absolute pattern
    found = [path for path in map(Path, names) if not path.is_dir()]
    yield from found
    if not found:
        yield ImageError(f"{pattern}: no such file, and none that the pattern matches")


def _images_in(folder: Path) -> Iterator[Path | ImageError]:
    """Yield the images in a folder, by the endings of their names; say what is left out, but for hidden files."""
    entries = sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    images = [entry for entry in entries if entry.suffix.lower() in IMAGE_SUFFIXES and not entry.is_dir()]
    others = Counter(
        "folders" if entry.is_dir() else entry.suffix.lower() or "without an ending"
        for entry in entries
        if entry not in set(images)
    )
    if others:
        kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(others.items()))
        exits.note(f"{folder}: {sum(others.values())} left out that are no images by their names: {kinds}")
    yield from images
    if not images:
        yield ImageError(f"{folder}: no images in it")
