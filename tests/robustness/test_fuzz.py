"""A bounded run of the fuzz targets; `python -m tests.robustness.fuzz_targets TARGET` goes on until it is stopped."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.warm_module import WarmModule

RUNS = {"texts": 600}
"""Of the targets that write files; of others there are 3,000."""
MIN_COVERED = 50
"""Edges of the runtime's code that each target reaches; without those of the runtime there would be a few."""


@pytest.fixture(scope="module")
def fuzz_targets() -> Iterator[WarmModule]:
    pytest.importorskip("atheris", reason="atheris has no wheel for this Python")
    with WarmModule("tests.robustness.fuzz_targets") as module:
        yield module


@pytest.mark.slow
@pytest.mark.parametrize("target", ["manifest", "graph", "mask", "polygon", "trace", "regions", "texts"])
def test_nothing_but_its_own_errors_comes_out_of_parsing(fuzz_targets: WarmModule, tmp_path: Path, target: str) -> None:
    runs = RUNS.get(target, 3000)
    limits = [f"-runs={runs}", "-seed=1", "-max_len=2000", "-rss_limit_mb=4096", f"-artifact_prefix={tmp_path}/"]
    done = fuzz_targets.run(target, *limits)
    assert done.returncode == 0, done.stderr[-3000:]
    assert f"Done {runs} runs" in done.stderr
    covered = re.search(r"DONE +cov: (\d+)", done.stderr)
    assert int(covered[1] if covered else 0) >= MIN_COVERED, "it is not guided by what it covers"
    assert list(tmp_path.iterdir()) == []
