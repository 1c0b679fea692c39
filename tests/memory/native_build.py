"""Builds of the native kernels in a folder of their own, with the programs that test them."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.conftest import ROOT


def build_native(folder: Path, *options: str) -> Path:
    """Build the library and the programs that the CMake options name; return the folder that they are in."""
    configure = ["-S", str(ROOT), "-B", str(folder), f"-DPATCHCAPTION_LIBRARY_DIR={folder}", *options]
    for command in (configure, ["--build", str(folder), "--parallel"]):
        subprocess.run(["cmake", *command], check=True, capture_output=True)
    return folder
