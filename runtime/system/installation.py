"""How this package was installed: as a clone that is on the path, or as a wheel, with the native kernels or without."""

from __future__ import annotations

import json
from email import message_from_string
from importlib import metadata
from pathlib import Path
from urllib.parse import unquote

from runtime.system.version import __version__

_ROOT = Path(__file__).parents[2]
_IS_CLONE = (_ROOT / "CMakeLists.txt").is_file()

NATIVE_FIX = (
    "run make native"
    if _IS_CLONE
    else "install a wheel that has them, or patchcaption from its source where there is a C++17 compiler"
)
"""What brings the native kernels here."""


def describe_installation() -> str:
    """Return the version and what was installed: "0.1.0, a wheel with the native kernels (py3-none-linux_x86_64)"."""
    try:
        installed = metadata.distribution("patchcaption")
    except metadata.PackageNotFoundError:
        return f"{__version__}, the clone {_ROOT}, which is not installed"
    if _is_here(Path(str(installed.locate_file("runtime")))):
        return f"{__version__}, {_describe_wheel(installed)}"
    if _is_here(_editable_root(installed) / "runtime"):
        return f"{__version__}, an editable install of the clone {_ROOT}"
    return f"{__version__}, the clone {_ROOT}, which is not the one that is installed"


def _describe_wheel(installed: metadata.Distribution) -> str:
    wheel = message_from_string(installed.read_text("WHEEL") or "")
    kind = (
        "a pure wheel, without the native kernels"
        if wheel["Root-Is-Purelib"] == "true"
        else "a wheel with the native kernels"
    )
    return f"{kind} ({wheel['Tag']})"


def _editable_root(installed: metadata.Distribution) -> Path:
    """Return the folder that an editable install refers to; one that is not there if it is another kind of install."""
    url = json.loads(installed.read_text("direct_url.json") or "{}")
    return Path(unquote(url.get("url", "").removeprefix("file://")) or "/nowhere")


def _is_here(runtime: Path) -> bool:
    return runtime.exists() and runtime.samefile(_ROOT / "runtime")
