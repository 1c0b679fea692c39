"""The wheel on the other Pythons that are here: it builds and captions the demo.

Torch is 5 GB on most of them, so it is done where PATCHCAPTION_PYTHONS=1 asks for it, as before a release.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import SAMPLE
from tests.packaging.test_metadata import PYTHONS

UV = Path(sys.executable).with_name("uv")
OTHERS = [python for python in PYTHONS if python != f"{sys.version_info.major}.{sys.version_info.minor}"]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        "PATCHCAPTION_PYTHONS" not in os.environ, reason="PATCHCAPTION_PYTHONS=1 takes 5 GB of the disk"
    ),
]


def interpreter(python: str) -> str | None:
    """Return a Python of a version, on the path or where pyenv keeps them."""
    kept = sorted(Path.home().glob(f".pyenv/versions/{python}.*/bin/python"))
    return str(kept[-1]) if kept else shutil.which(f"python{python}")


@pytest.fixture(scope="module")
def uv_cache() -> Iterator[str]:
    """Packages that the environments share, which are large."""
    with tempfile.TemporaryDirectory() as name:
        yield name


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that is removed at once."""
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


@pytest.mark.parametrize("python", OTHERS)
def test_the_wheel_builds_and_shows_the_demo(python: str, wheel: Path, folder: Path, uv_cache: str) -> None:
    found = interpreter(python)
    if found is None:
        pytest.skip(f"there is no Python {python} here")
    run(folder, UV, "venv", "--quiet", "--python", found, "env")
    run(
        folder,
        UV,
        "pip",
        "install",
        "--quiet",
        "--cache-dir",
        uv_cache,
        "--python",
        "env",
        "torch==2.13.0",
        f"{wheel}[cpu,export]",
    )
    captioned = run(folder, folder / "env" / "bin" / "patchcaption", "demo")
    captions = re.findall(r"^0\.\d{3}  (.*)$", captioned, flags=re.MULTILINE)
    assert captions == (SAMPLE / "captions.txt").read_text().splitlines()
    about = run(folder, folder / "env" / "bin" / "patchcaption", "doctor")
    assert f"Python {python}." in about
    assert "a wheel with the native kernels" in about


def run(folder: Path, *command: str | Path) -> str:
    """Run a command in a folder; return what it printed on stdout."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    environment |= {"XDG_DATA_HOME": str(folder)}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=900, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
