"""The wheels of this clone, built once for a test run, and what they put into site-packages."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from filelock import FileLock

from tests.conftest import ROOT, shared_folder


def build_wheel(folder: Path, *options: str, source: Path = ROOT, **environment: str) -> Path:
    """Build a wheel of this clone, or of another source, into a folder; return it."""
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "-q",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        str(folder),
        *options,
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    subprocess.run([*command, str(source)], env=environment, check=True, timeout=300, capture_output=True)
    (wheel,) = folder.glob("patchcaption-*.whl")
    return wheel


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel with the native kernels."""
    folder = shared_folder(tmp_path_factory) / "wheel"
    with FileLock(f"{folder}.lock"):
        found = list(folder.glob("patchcaption-*.whl"))
        return found[0] if found else build_wheel(folder)


@pytest.fixture(scope="session")
def site(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the wheel puts into site-packages."""
    folder = tmp_path_factory.mktemp("site")
    with zipfile.ZipFile(wheel) as files:
        files.extractall(folder)
    return folder


def run(folder: Path, *arguments: str, path: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run Python in a folder, with the packages of ``path`` behind those of the folder."""
    environment = {**os.environ, "PYTHONPATH": str(path), **environment}
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)


USERS_MODULE = "raise SystemExit('the user\\'s own runtime was run')\n"


@pytest.fixture(params=["runtime.py", "runtime/__init__.py"])
def users_folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A program's folder with a module named runtime of its own."""
    file = tmp_path / request.param
    file.parent.mkdir(exist_ok=True)
    file.write_text(USERS_MODULE)
    return tmp_path
