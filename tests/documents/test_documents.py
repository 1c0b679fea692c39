"""What the documents show runs, and says what they say."""

from __future__ import annotations

import doctest
import inspect
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from types import FunctionType

import pytest
from PIL import Image

import runtime
from runtime import Captioner
from runtime.cli.main import main
from tests.conftest import ROOT, write_clip

PAGES = ["README.md", *(str(page.relative_to(ROOT)) for page in sorted((ROOT / "docs").glob("*.md")))]
LINKING = [*PAGES, "CONTRIBUTING.md", "SECURITY.md", "engines/README.md", "examples/ros2/README.md"]


def blocks(language: str, pages: Sequence[str] = PAGES) -> list[tuple[str, str]]:
    """The name of each block of code, and the block."""
    return [
        (f"{page} {number}", block)
        for page in pages
        for number, block in enumerate(re.findall(rf"```{language}\n(.*?)```", text_of(page), flags=re.DOTALL))
    ]


def text_of(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


@pytest.fixture
def clone(demo_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder laid out as a clone is after `make demo`, as the working directory."""
    (tmp_path / "engines").mkdir()
    (tmp_path / "engines" / "demo").symlink_to(demo_bundle)
    (tmp_path / "export").symlink_to(ROOT / "export")
    (tmp_path / "out").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_the_readme_has_snippets() -> None:
    assert len(blocks("python", ["README.md"])) >= 2
    assert any("make demo" in block for _, block in blocks("sh", ["README.md"]))


@pytest.mark.parametrize(("name", "snippet"), blocks("python"), ids=[name for name, _ in blocks("python")])
@pytest.mark.usefixtures("clone")
def test_python_snippets_run_and_print_what_they_say(
    capsys: pytest.CaptureFixture[str], name: str, snippet: str
) -> None:
    exec(compile(snippet, name, "exec"), {})
    said = re.findall(r"^# (.+)$", snippet, flags=re.MULTILINE)
    printed = capsys.readouterr().out.splitlines()
    assert printed == said


def commands() -> list[str]:
    """Those that need nothing but what is in a clone; the ones of docs/jetson.md are for its boards."""
    pages = [page for page in PAGES if page != "docs/jetson.md"]
    lines = "\n".join(block for _, block in blocks("sh", pages)).replace("\\\n", " ").splitlines()
    return sorted({line for line in lines if line.startswith("python -m runtime")})


@pytest.mark.parametrize("command", commands())
@pytest.mark.usefixtures("clone")
def test_runtime_commands_run(command: str, sample_image: Image.Image) -> None:
    if "clip.mp4" in command:
        write_clip(Path("clip.mp4"), [sample_image] * 3)
    assert main(shlex.split(command, comments=True)[3:]) == 0


def test_links_lead_somewhere() -> None:
    for page in LINKING:
        for target in re.findall(r"\]\((?!http|_pictures/)([^)#]+)\)", text_of(page)):
            assert ((ROOT / page).parent / target).exists(), f"{page} links to {target}"


def test_every_public_name_is_in_the_reference() -> None:
    reference = text_of("docs/reference.md")
    public = {name for name in runtime.__all__ if not name.startswith("__")}
    assert public == set(re.findall(r"auto(?:class|function|exception):: (\w+)$", reference, flags=re.MULTILINE))


def examples() -> list[tuple[str, doctest.DocTest]]:
    """Of every public name and of its public functions."""
    found = []
    for name in sorted(set(runtime.__all__) - {"__version__"}):
        thing = getattr(runtime, name)
        found.append((name, thing))
        found += [(f"{name}.{member}", getattr(thing, member)) for member in public_functions(thing)]
    read = doctest.DocTestParser().get_doctest
    return [(name, read(inspect.getdoc(thing) or "", {}, name, None, None)) for name, thing in found]


def public_functions(thing: object) -> list[str]:
    """All but `weights` and `outline` of the kinds of regions, which are those of `Region` and `Outlined`."""
    if not isinstance(thing, type):
        return []
    own = [(name, member) for name, member in vars(thing).items() if not name.startswith("_")]
    return [
        name
        for name, member in own
        if isinstance(member, (FunctionType, classmethod, staticmethod))
        and (name not in ("weights", "outline") or thing is runtime.Region)
    ]


@pytest.mark.parametrize(("name", "example"), examples(), ids=[name for name, _ in examples()])
@pytest.mark.usefixtures("clone")
def test_every_public_name_has_an_example_that_runs(
    name: str, example: doctest.DocTest, demo: Captioner, capsys: pytest.CaptureFixture[str]
) -> None:
    assert example.examples, f"{name} has no example"
    (beginning,) = (block for _, block in blocks("python", ["docs/reference.md"]))
    names: dict[str, object] = {}
    exec(beginning.replace("captioner = ", "pass  # "), names)
    example.globs = {**names, "captioner": demo}
    failed = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(example).failed
    assert failed == 0, capsys.readouterr().out


def test_images_install_extras_that_there_are() -> None:
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    for file in (ROOT / "docker").iterdir():
        (extra,) = re.findall(r"-e '\.\[(\w+)\]'", file.read_text(encoding="utf-8"))
        assert re.search(rf"^{extra} = \[", project, flags=re.MULTILINE), file
