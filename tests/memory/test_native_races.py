"""The native kernels under ThreadSanitizer: sixteen threads on shared banks, each of which gets what it gets alone."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.conftest import ROOT


@pytest.mark.slow
def test_threads_neither_race_nor_change_each_others_results(tmp_path: Path) -> None:
    options = [
        f"-DPATCHCAPTION_OUTPUT_DIR={tmp_path}",
        "-DPATCHCAPTION_STRESS=ON",
        "-DCMAKE_CXX_FLAGS=-fsanitize=thread",
    ]
    for command in (["-S", str(ROOT), "-B", str(tmp_path), *options], ["--build", str(tmp_path), "--parallel"]):
        subprocess.run(["cmake", *command], check=True, capture_output=True)
    done = subprocess.run([tmp_path / "patchcaption_stress", "1"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith(" projections\n")
