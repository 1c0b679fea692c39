"""The package `patchcaption`: the names of `runtime`, whatever else in a program is called runtime."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

import patchcaption
import runtime
from patchcaption._packages import claim
from tests.packaging.conftest import run


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
    done = run(users_folder, str(program))
    assert done.stdout == "True\n"
    users_file = next(users_folder.glob("runtime*/__init__.py"), users_folder / "runtime.py")
    said = f"`import runtime` is patchcaption's package in this program, and not {users_file}: rename that module"
    assert said in done.stderr


def test_every_public_name_of_runtime_has_a_home_and_no_other_name_has() -> None:
    assert sorted(runtime._HOME_OF) == sorted(runtime.__all__)
    assert set(runtime.__all__) <= set(dir(runtime))
    with pytest.raises(AttributeError, match="module 'runtime' has no attribute 'nothing'"):
        _ = runtime.nothing


@pytest.mark.parametrize("command", ["import runtime", "main(['--version'])", "main(['--help'])", "main(['serv'])"])
def test_what_needs_no_tensors_loads_neither_torch_nor_numpy(command: str, tmp_path: Path) -> None:
    start = "import sys; from patchcaption.__main__ import main"
    end = "print(sorted({'torch', 'numpy', 'pydantic', 'PIL'} & set(sys.modules)))"
    assert run(tmp_path, "-c", f"{start}\n{command}\n{end}").stdout.endswith("[]\n")


USE = """
import sys
from concurrent.futures import ThreadPoolExecutor
import patchcaption
print('torch' in sys.modules)
with ThreadPoolExecutor(8) as pool:
    print({id(one) for one in pool.map(lambda _: patchcaption.Captioner, range(64))} == {id(patchcaption.Captioner)})
print('torch' in sys.modules)
import runtime
from patchcaption import *
print(Captioner.__name__, __version__ is not None)
"""


def test_names_are_loaded_when_the_first_is_used_by_any_threads_without_a_warning(tmp_path: Path) -> None:
    done = run(tmp_path, "-W", "error", "-c", USE)
    assert (done.stdout.splitlines(), done.stderr) == (["False", "True", "True", "Captioner True"], "")


def test_names_are_those_of_runtime_and_no_others() -> None:
    assert set(runtime.__all__) <= set(dir(patchcaption))
    with pytest.raises(AttributeError, match="module 'patchcaption' has no attribute 'pipeline'"):
        _ = patchcaption.pipeline


def test_a_package_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("patchcaption._packages._FOLDERS", {"nothing": (tmp_path / "nothing",)})
    with pytest.raises(
        ImportError, match=r"patchcaption: .*nothing/__init__.py is missing; install patchcaption again"
    ):
        claim("nothing")
    assert "nothing" not in sys.modules


def test_a_runtime_that_was_imported_before_is_named(users_folder: Path) -> None:
    module = next(users_folder.glob("runtime*"))
    (module / "__init__.py" if module.is_dir() else module).write_text("")
    done = run(users_folder, "-c", "import runtime, patchcaption")
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith("ImportError: patchcaption: another module named 'runtime' is imported already")
    assert last.endswith("rename yours, or import patchcaption before it")


def test_both_packages_are_the_same_command(tmp_path: Path) -> None:
    ways = [run(tmp_path, "-m", name, "--help") for name in ("patchcaption", "runtime")]
    assert ways[0].stdout == ways[1].stdout
    assert "build-memory-bank" in ways[0].stdout
