"""The example of docs/evaluation.md runs, and prints what the page says, with the real metrics."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from benchmarks import quality
from export.demo import annotations as scene_annotations
from tests.benchmarks.test_caption_metrics import needs_java
from tests.conftest import ROOT

PAGE = (ROOT / "docs" / "evaluation.md").read_text(encoding="utf-8")


@pytest.mark.slow
@needs_java
def test_the_example_prints_what_the_page_says(
    demo_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "engines").mkdir()
    (tmp_path / "engines" / "demo").symlink_to(demo_bundle)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (block, expected) = re.findall(r"```sh\n(python -m export\.demo.*?)```\n\n```text\n(.*?)```", PAGE, re.DOTALL)[0]
    draw, score = (shlex.split(line) for line in block.splitlines())
    assert scene_annotations.main(draw[3:]) == 0
    assert quality.main([*score[2:], "--markdown", "row.md"]) == 0
    printed = capfd.readouterr()
    assert normal(printed.out) == normal(expected)
    assert not printed.err.strip()  # of what Java and the library print, nothing
    assert printed.out.startswith(Path("row.md").read_text())


def normal(text: str) -> str:
    """Return a text without what depends on the machine."""
    return re.sub(r"- time: .*", "- time", re.sub(r"onnxruntime \S+ ", "onnxruntime ", text)).strip()


def test_commands_of_the_page_have_the_options_that_they_are_given(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        quality.main(["--help"])
    options = set(re.findall(r"--[\w-]+", capsys.readouterr().out))
    lines = [line for line in PAGE.splitlines() if line.startswith("python benchmarks/quality.py")]
    assert len(lines) > 5
    assert {word for line in lines for word in line.split() if word.startswith("--")} <= options
