"""Thousands of changed graphs of every engine: refused, or run as their contract says, in bounded time and memory."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock

from runtime.bundle import EnginePrecision
from tests.conftest import ROOT, shared_folder
from tests.exported_forms import export_small_bundle

COUNT = 5000
COUNT_IN_INT8 = 1000
"""Of graphs that have the operators of float32 besides their own."""


@pytest.fixture(scope="module")
def small_bundle(tmp_path_factory: pytest.TempPathFactory, demo_bundle: Path) -> Callable[[EnginePrecision], Path]:
    """Return a bundle whose engines take a fraction of the demo's time to open, of the same operators."""

    def export(precision: EnginePrecision) -> Path:
        folder = shared_folder(tmp_path_factory) / f"small-{precision}"
        with FileLock(folder.with_suffix(".lock")):
            return folder if folder.exists() else export_small_bundle(demo_bundle, folder, precision)

    return export


@pytest.mark.slow
@pytest.mark.parametrize(
    ("engine", "precision"),
    [
        *((engine, "fp32") for engine in ("backbone", "reencoder", "decoder", "beam_decoder")),
        *((engine, "int8") for engine in ("backbone", "decoder")),  # the others have the same operators
    ],
)
def test_changed_graphs_are_refused_or_run(
    small_bundle: Callable[[EnginePrecision], Path], engine: str, precision: EnginePrecision
) -> None:
    require_refused_or_run(small_bundle(precision), engine, COUNT if precision == "fp32" else COUNT_IN_INT8)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["mapping", "prefill", "decoder", "beam_decoder"])
def test_changed_graphs_of_decoders_with_prompts_are_too(prompted_bundle: Path, engine: str) -> None:
    require_refused_or_run(prompted_bundle, engine)


def require_refused_or_run(bundle: Path, engine: str, count: int = COUNT) -> None:
    command = [sys.executable, "-m", "tests.robustness.graph_mutants", str(bundle), engine, str(count)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    last = done.stdout.splitlines()[-1:]
    assert done.returncode == 0, f"mutant {last}: exit code {done.returncode}\n{done.stderr[-3000:]}"
    counts = json.loads(last[0])
    assert counts["refused"] + counts["alike"] + counts["run"] == count + 1  # and the unchanged one
    assert counts["refused"] > count / 2
    assert counts["run"] > count / 100, "too few are admitted to say what becomes of them"
    assert counts["refused_later"] == 0, f"admitted, but refused by an executor\n{done.stderr[-3000:]}"
