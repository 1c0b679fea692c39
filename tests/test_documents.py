"""What the documents show runs, and says what they say."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from runtime.cli import main
from tests.conftest import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


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
    assert len(blocks("python")) >= 2
    assert any("make demo" in block for block in blocks("sh"))


@pytest.mark.parametrize("number", range(len(blocks("python"))))
@pytest.mark.usefixtures("clone")
def test_python_snippets_run_and_print_what_they_say(capsys: pytest.CaptureFixture[str], number: int) -> None:
    snippet = blocks("python")[number]
    exec(compile(snippet, f"README snippet {number}", "exec"), {})
    said = re.findall(r"^# (.+)$", snippet, flags=re.MULTILINE)
    printed = capsys.readouterr().out.splitlines()
    assert printed == said


def commands() -> list[str]:
    lines = "\n".join(blocks("sh")).replace("\\\n", " ").splitlines()
    return [line for line in lines if line.startswith("python -m runtime")]


@pytest.mark.parametrize("command", commands())
@pytest.mark.usefixtures("clone")
def test_runtime_commands_run(command: str) -> None:
    assert main(shlex.split(command, comments=True)[3:]) == 0


def test_links_lead_somewhere() -> None:
    for name in ("README.md", "CONTRIBUTING.md", "engines/README.md", "docs/jetson.md"):
        file = ROOT / name
        for target in re.findall(r"\]\((?!http)([^)#]+)\)", file.read_text(encoding="utf-8")):
            assert (file.parent / target).exists(), f"{name} links to {target}"


def test_images_install_extras_that_there_are() -> None:
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    for file in (ROOT / "docker").iterdir():
        (extra,) = re.findall(r"-e '\.\[(\w+)\]'", file.read_text(encoding="utf-8"))
        assert re.search(rf"^{extra} = \[", project, flags=re.MULTILINE), file
