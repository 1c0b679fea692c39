"""Thousands of changed graphs of every engine: refused, or run as their contract says, in bounded time and memory."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from filelock import FileLock

from runtime.bundle import EnginePrecision
from tests.conftest import shared_folder
from tests.exported_forms import export_small_bundle
from tests.warm_module import WarmModule

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


@pytest.fixture(scope="module")
def graph_mutants() -> Iterator[WarmModule]:
    with WarmModule("tests.robustness.graph_mutants") as module:
        yield module


@pytest.mark.slow
@pytest.mark.parametrize(
    ("engine", "precision"),
    [
        *((engine, "fp32") for engine in ("backbone", "reencoder", "decoder", "beam_decoder")),
        *((engine, "int8") for engine in ("backbone", "decoder")),  # the others have the same operators
    ],
)
def test_changed_graphs_are_refused_or_run(
    graph_mutants: WarmModule,
    small_bundle: Callable[[EnginePrecision], Path],
    engine: str,
    precision: EnginePrecision,
) -> None:
    count = COUNT if precision == "fp32" else COUNT_IN_INT8
    require_refused_or_run(graph_mutants, small_bundle(precision), engine, count)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["mapping", "prefill", "decoder", "beam_decoder"])
def test_changed_graphs_of_decoders_with_prompts_are_too(
    graph_mutants: WarmModule, prompted_bundle: Path, engine: str
) -> None:
    require_refused_or_run(graph_mutants, prompted_bundle, engine, COUNT)


def require_refused_or_run(graph_mutants: WarmModule, bundle: Path, engine: str, count: int) -> None:
    done = graph_mutants.run(bundle, engine, str(count))
    last = done.stdout.splitlines()[-1:]
    assert done.returncode == 0, f"mutant {last}: exit code {done.returncode}\n{done.stderr[-3000:]}"
    counts = json.loads(last[0])
    assert counts["refused"] + counts["alike"] + counts["run"] == count + 1  # and the unchanged one
    assert counts["refused"] > count / 2
    assert counts["run"] > count / 100, "too few are admitted to say what becomes of them"
    assert counts["refused_later"] == 0, f"admitted, but refused by an executor\n{done.stderr[-3000:]}"
