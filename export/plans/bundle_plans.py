"""Builds the TensorRT plans of all graphs of a bundle."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from export.lint import lint
from export.plans.builder import PlanOptions, PlanTarget, build_plan, timing_cache_file
from export.plans.profiles import profiles_of
from runtime.backends.cuda.device import Gpu
from runtime.backends.tensorrt.api import TensorRtApi, open_tensorrt
from runtime.backends.tensorrt.build import Profile
from runtime.bundle import Bundle, EnginePrecision, Manifest, PlanRecord
from runtime.errors import BackendError

_FP8_CAPABILITY = (8, 9)


class BuildReporter(Protocol):
    """Receives the progress of a build."""

    def step(self, description: str) -> None:
        """Report that the next step has begun."""

    def phase(self, name: str, done: int, total: int) -> None:
        """Report progress within a step, as TensorRT does; ``total`` is 0 where it is not known."""

    def note(self, text: str) -> None:
        """Show a note to the user."""


def open_for(precision: EnginePrecision) -> TensorRtApi:
    """Open TensorRT for graphs of a precision on this machine's GPU.

    Raises:
        BackendError: this machine has no TensorRT or no GPU, or the GPU does not have the precision.
    """
    api, gpu = open_tensorrt(), Gpu.current()
    if precision == "fp8" and tuple(map(int, gpu.compute_capability.split("."))) < _FP8_CAPABILITY:
        raise BackendError(
            f"--precision fp8: {gpu.name} has compute capability {gpu.compute_capability}, and fp8 takes 8.9 (Ada) or "
            "newer; use int8, fp16 or bf16"
        )
    return api


def build_plans(
    api: TensorRtApi,
    manifest: Manifest,
    folder: Path,
    previous: Bundle | None,
    options: PlanOptions,
    progress: BuildReporter,
) -> tuple[PlanRecord, ...]:
    """Build a plan of each graph in ``folder``, beside it, for this machine's GPU.

    Args:
        manifest: the manifest of the graphs' bundle.
        previous: a bundle whose plans are reused where nothing that they depend on has changed.

    Raises:
        BackendError: TensorRT will not accept a graph, or cannot build it.
    """
    profiles = {folder / manifest.engines[name].file: of_graph for name, of_graph in profiles_of(manifest).items()}
    for graph, of_graph in profiles.items():
        _lint_graph(graph, api, of_graph)
    gpu, records = Gpu.current(), []
    target = PlanTarget(api, gpu, timing_cache_file(api, gpu))
    for graph, of_graph in profiles.items():
        progress.step(f"{graph.name} to a TensorRT plan for {gpu.name}")
        records.append(build_plan(target, graph, of_graph, options, previous, progress.phase))
    return tuple(records)


def _lint_graph(graph: Path, api: TensorRtApi, profiles: Sequence[Profile]) -> None:
    """Raise for what TensorRT would refuse minutes later and with a less helpful message."""
    errors = [found for found in lint(graph, api.release, profiles) if found.severity == "error"]
    if errors:
        more = f", and {len(errors) - 1} more: python -m export.lint" if len(errors) > 1 else ""
        raise BackendError(f"{graph.name}: {api.name} will not take it: {errors[0]}{more}")
