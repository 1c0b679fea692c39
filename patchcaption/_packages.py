"""Finds the packages that come with this one, whatever else is called so on the path: `runtime`, and `export`."""

from __future__ import annotations

import sys
import warnings
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import spec_from_file_location
from pathlib import Path

_HERE = Path(__file__).parent
_FOLDERS = {
    "runtime": (_HERE.parent / "runtime",),
    "export": (_HERE / "_tools" / "export", _HERE.parent / "export"),  # in a wheel, in a clone
}


class HiddenModuleWarning(RuntimeWarning):
    """A program's own module cannot be imported, because a package of patchcaption has its name."""


class _PackageFinder:
    """Finds packages by name in their own folders, before any in the program's: the first entry of `sys.meta_path`."""

    def __init__(self) -> None:
        self.files: dict[str, Path] = {}

    def find_spec(self, name: str, *_: object) -> ModuleSpec | None:
        """Return where a package is, None for all that this finder does not know."""
        file = self.files.get(name)
        if file is None:
            return None
        _warn_of_hidden_module(name, file)
        return spec_from_file_location(name, file, submodule_search_locations=[str(file.parent)])


_finder = _PackageFinder()


def claim(name: str) -> None:
    """Make ``import NAME`` find this project's package from now on; it is imported when it is first used.

    A program's own module of that name would be found first, since Python looks into the program's folder before
    site-packages.

    Raises:
        ImportError: another module of that name was imported already, or the package is not there.
    """
    file = _find(name)
    loaded = sys.modules.get(name)
    if loaded is not None and not _is_same(getattr(loaded, "__file__", None), file):
        raise ImportError(
            f"patchcaption: another module named '{name}' is imported already ({getattr(loaded, '__file__', None)}), "
            "and patchcaption's own code is in a package of that name; rename yours, or import patchcaption before it"
        )
    _finder.files[name] = file
    if _finder not in sys.meta_path:
        sys.meta_path.insert(0, _finder)


def _find(name: str) -> Path:
    """Return the file that a package is imported from."""
    files = [folder / "__init__.py" for folder in _FOLDERS[name]]
    for file in files:
        if file.is_file():
            return file
    raise ImportError(f"patchcaption: {files[0]} is missing; install patchcaption again")


def _warn_of_hidden_module(name: str, file: Path) -> None:
    """Warn if the program has a module of a package's name, which it can no longer import."""
    spec = PathFinder.find_spec(name)
    hidden = None if spec is None else spec.origin
    if hidden is not None and not _is_same(hidden, file):
        warnings.warn(
            f"`import {name}` is patchcaption's package in this program, and not {hidden}: rename that module",
            HiddenModuleWarning,
            stacklevel=3,
        )


def _is_same(file: str | None, other: Path) -> bool:
    return file is not None and Path(file).exists() and Path(file).samefile(other)
