"""The page on costs: what it computes follows from the figures that it names, and the flags that it names are there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from patchcaption._commands import TOOLS, run_tool
from runtime.cli.main import _COMMANDS, main
from tests.conftest import ROOT
from tests.documents.test_documents import text_of

PAGE = "docs/scale.md"
RESULTS = "benchmarks/results/2026-11-28-batch.md"
CORES = 2
"""Those of the machine that was measured."""
Row = list[str]


def table(heading: str) -> list[Row]:
    """Return the cells of the first table under a heading, without the one with the dashes."""
    text = text_of(PAGE).split(f"## {heading}\n", 1)[1]
    lines = re.search(r"(^\|.*\|\n)+", text, flags=re.MULTILINE)
    assert lines is not None
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[0].splitlines()]
    return [row for row in rows if set(row[0]) != {"-"} and not row[0].startswith("---")]


def number(cell: str) -> float:
    found = re.match(r"[\d.,]+", cell)
    assert found is not None, cell
    return float(found[0].replace(",", ""))


def rows(heading: str) -> dict[str, list[float]]:
    return {row[0]: [number(cell) for cell in row[1:]] for row in table(heading)[1:]}


def rate(name: str) -> float:
    """Return the images a second that were measured with a bundle, by its name in another table."""
    kind, precision = name.split(", ")
    found = [row for row in table("One image")[1:] if row[0].startswith("demo" if kind == "demo" else "DINOv2 " + kind)]
    (row,) = [row for row in found if precision in row[0]]
    return number(row[1])


def rates(heading: str) -> list[float]:
    return [rate(name) for name in table(heading)[0][1:]]


def test_the_measured_figures_are_those_of_the_results() -> None:
    text = text_of(RESULTS)
    for row in table("One image")[1:]:
        assert number(row[2]) == pytest.approx(CORES / number(row[1]), rel=0.04)
        assert re.search(rf"\| {re.escape(row[1])} \| [\d.]+ GiB \|", text), row


def test_cores_of_cameras() -> None:
    for name, cores in rows("Ten cameras").items():
        wanted = number(name.split("for ")[1])
        assert cores == pytest.approx([wanted * CORES / one for one in rates("Ten cameras")], rel=0.2)


def test_machines_of_robots() -> None:
    found = rows("A thousand robots")
    expected = [1000 * CORES / one for one in (51.3, *rates("A thousand robots")[1:])]
    assert found["cores for 1,000 images/s"] == pytest.approx(expected, rel=0.04)
    assert found["machines of 16 cores"] == [-(-one // 16) for one in expected]
    assert found["network in"] == [48] * 3


def test_hours_and_bytes_of_images() -> None:
    found, images = rows("A hundred million images"), 1e8
    hours = [images * CORES / one / 3600 for one in rates("A hundred million images")]
    assert found["core-hours"] == pytest.approx(hours, rel=0.02)
    assert found["hours on 100 machines of 16 cores"] == pytest.approx([one / 1600 for one in hours], rel=0.05)
    assert found["results in Parquet, 400 million rows"] == pytest.approx([4 * images * 29 / 1e9] * 3, rel=0.05)
    assert found["results in JSON lines"] == pytest.approx([4 * images * 303 / 1e9] * 3, rel=0.01)


def test_the_flags_are_there(capsys: pytest.CaptureFixture[str]) -> None:
    for command in _COMMANDS:
        main([command, "--help"])
    for command in ("build", "triton-repository"):
        assert command in TOOLS
        with pytest.raises(SystemExit):
            run_tool(command, ["--help"])
    known = set(re.findall(r"--[a-z-]+", capsys.readouterr().out))
    benchmarks = "".join((ROOT / "benchmarks" / name).read_text() for name in ("batch.py", "latency.py"))
    named = set(re.findall(r"--[a-z][a-z-]+", text_of(PAGE)))
    assert named - known - set(re.findall(r"--[a-z-]+", benchmarks)) == set()
    assert Path(ROOT / RESULTS).exists()
