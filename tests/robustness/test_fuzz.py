"""A bounded run of the fuzz targets; `python -m tests.robustness.fuzz_targets TARGET` goes on until it is stopped."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

RUNS = {"texts": 600}
"""Of the targets that write files; of others there are 3,000."""


@pytest.mark.slow
@pytest.mark.parametrize("target", ["manifest", "graph", "mask", "polygon", "trace", "regions", "texts"])
def test_nothing_but_its_own_errors_comes_out_of_parsing(tmp_path: Path, target: str) -> None:
    pytest.importorskip("atheris", reason="atheris has no wheel for this Python")
    runs = RUNS.get(target, 3000)
    limits = [f"-runs={runs}", "-seed=1", "-max_len=2000", "-rss_limit_mb=4096", f"-artifact_prefix={tmp_path}/"]
    command = [sys.executable, "-m", "tests.robustness.fuzz_targets", target, *limits]
    # By a shell: a process begins with the peak of memory of the one that starts it, here that of all tests before.
    by_shell = ["sh", "-c", '"$@"; exit $?', "sh", *command]
    done = subprocess.run(by_shell, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-3000:]
    assert f"Done {runs} runs" in done.stderr
    assert list(tmp_path.iterdir()) == []
