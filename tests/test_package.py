"""The package `patchcaption`: the names of `runtime`, whatever else in a program is called runtime."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import patchcaption
import runtime
from tests.conftest import ROOT

USERS_MODULE = "raise SystemExit('the user\\'s own runtime was run')\n"


@pytest.fixture(params=["runtime.py", "runtime/__init__.py"])
def users_folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A program's folder with a module named runtime of its own."""
    file = tmp_path / request.param
    file.parent.mkdir(exist_ok=True)
    file.write_text(USERS_MODULE)
    return tmp_path


@pytest.fixture(scope="module")
def wheel_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the wheel puts into site-packages."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=120)
    (wheel,) = folder.glob("patchcaption-*.whl")
    with zipfile.ZipFile(wheel) as files:
        files.extractall(folder / "site")
    return folder / "site"


def run(folder: Path, *arguments: str, path: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Run Python in a folder, with the packages of ``path`` behind those of the folder."""
    environment = {**os.environ, "PYTHONPATH": str(path)}
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)


def test_both_packages_have_the_same_names() -> None:
    assert patchcaption.__all__ == runtime.__all__
    for name in runtime.__all__:
        assert getattr(patchcaption, name) is getattr(runtime, name)


def test_the_command_is_not_taken_over_by_a_module_of_the_program(users_folder: Path) -> None:
    assert run(users_folder, "-m", "runtime").stderr == "the user's own runtime was run\n"  # what is to be kept out
    done = run(users_folder, "-m", "patchcaption", "--version")
    assert (done.stdout, done.stderr) == (f"patchcaption {runtime.__version__}\n", "")


def test_the_console_script_is_not_taken_over_either(users_folder: Path) -> None:
    script = "import sys; from patchcaption.__main__ import main; sys.exit(main(['--version']))"
    done = run(users_folder, "-c", script)  # which looks into the folder first, too
    assert (done.stdout, done.stderr) == (f"patchcaption {runtime.__version__}\n", "")


def test_an_import_is_not_taken_over_by_a_module_of_the_program(users_folder: Path) -> None:
    program = users_folder / "program.py"
    program.write_text("import patchcaption, runtime\nprint(patchcaption.Captioner is runtime.Captioner)\n")
    assert run(users_folder, str(program)).stdout == "True\n"


def test_a_runtime_that_was_imported_before_is_named(users_folder: Path) -> None:
    module = next(users_folder.glob("runtime*"))
    (module / "__init__.py" if module.is_dir() else module).write_text("")
    done = run(users_folder, "-c", "import runtime, patchcaption")
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith("ImportError: patchcaption: another module named 'runtime' is imported already")
    assert last.endswith("rename yours, or import patchcaption before it")


def test_the_wheel_has_both_packages_and_runs_from_any_folder(wheel_dir: Path, users_folder: Path) -> None:
    assert {path.name for path in wheel_dir.iterdir() if path.suffix != ".dist-info"} == {"patchcaption", "runtime"}
    assert {path.parent.name for path in wheel_dir.glob("*/py.typed")} == {"patchcaption", "runtime"}
    (entry_points,) = wheel_dir.glob("*.dist-info/entry_points.txt")
    assert "patchcaption = patchcaption.__main__:main" in entry_points.read_text()
    code = "import patchcaption, runtime; print(patchcaption.__file__, runtime.__file__)"
    assert run(users_folder, "-c", code, path=wheel_dir).stdout.split() == [
        str(wheel_dir / name / "__init__.py") for name in ("patchcaption", "runtime")
    ]
    done = run(users_folder, "-m", "patchcaption", "doctor", "--help", path=wheel_dir)
    assert (done.returncode, done.stderr) == (0, "")
