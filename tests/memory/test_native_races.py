"""The native kernels under ThreadSanitizer: threads share banks and layers, and each gets what it gets alone."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.memory.native_build import build_native


@pytest.mark.slow
def test_threads_neither_race_nor_change_each_others_results(tmp_path: Path) -> None:
    folder = build_native(tmp_path, "-DPATCHCAPTION_STRESS=ON", "-DCMAKE_CXX_FLAGS=-fsanitize=thread")
    for program, unit in (("patchcaption_stress", "projections"), ("patchcaption_step_stress", "steps")):
        done = subprocess.run([folder / program, "1"], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.endswith(f" {unit}\n")
