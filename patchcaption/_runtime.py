"""Loads the package `runtime` that was installed beside this one, whatever else is called so on the path."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

_RUNTIME = Path(__file__).parent.parent / "runtime" / "__init__.py"


def load_runtime() -> None:
    """Make `import runtime` find this project's package.

    A program's own runtime.py would be found first, since Python looks into the program's folder before site-packages.

    Raises:
        ImportError: another module named runtime was imported already.
    """
    loaded = sys.modules.get("runtime")
    if loaded is None:
        _load()
    elif not _is_ours(getattr(loaded, "__file__", None)):
        raise ImportError(
            f"patchcaption: another module named 'runtime' is imported already ({loaded.__file__}), and patchcaption's "
            "own code is in a package of that name; rename yours, or import patchcaption before it"
        )


def _load() -> None:
    spec = importlib.util.spec_from_file_location(
        "runtime", _RUNTIME, submodule_search_locations=[str(_RUNTIME.parent)]
    )
    if spec is None or spec.loader is None:
        raise ImportError(f"patchcaption: {_RUNTIME} is missing; install patchcaption again")
    module = importlib.util.module_from_spec(spec)
    sys.modules["runtime"] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules["runtime"]
        raise


def _is_ours(file: str | None) -> bool:
    return file is not None and Path(file).exists() and Path(file).samefile(_RUNTIME)
