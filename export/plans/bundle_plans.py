"""Builds the TensorRT plans of all graphs of a bundle."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, get_args

from export.lint import lint
from export.plans.builder import PlanOptions, PlanTarget, build_plan
from export.plans.profiles import profiles_of
from runtime.backends.cuda.device import Gpu
from runtime.backends.tensorrt.api import TensorRtApi, open_tensorrt
from runtime.backends.tensorrt.build import Profile
from runtime.backends.tensorrt.rtx import CAPABILITIES, DEFAULT_CAPABILITIES, open_tensorrt_rtx
from runtime.bundle import Bundle, BundleBackend, EnginePrecision, GraphPrecision, Manifest, PlanRecord
from runtime.errors import BackendError


class BuildReporter(Protocol):
    """Receives the progress of a build."""

    def step(self, description: str) -> None:
        """Report that the next step has begun."""

    def phase(self, name: str, done: int, total: int) -> None:
        """Report progress within a step, as TensorRT does; ``total`` is 0 where it is not known."""

    def note(self, text: str) -> None:
        """Show a note to the user."""


def open_target(backend: BundleBackend, precision: GraphPrecision, options: PlanOptions) -> PlanTarget:
    """Open the TensorRT of a backend, for graphs of a precision.

    Raises:
        BackendError: it is not there, or there is no GPU for it; the GPUs do not have the precision; or an option is
            another product's.
    """
    if backend == "tensorrt-rtx":
        target = _rtx_target(precision, options)
    else:
        if options.compute_capabilities:
            raise BackendError(f"--compute-capability: {backend} builds for this machine's GPU; see --hardware")
        target = PlanTarget.on(Gpu.current(), open_tensorrt())
    for capability in target.compute_capabilities:
        available = _precisions_of(backend, capability)
        if precision not in available:
            of_gpu = f"{target.gpu.name} with compute capability" if target.gpu else "compute capability"
            raise BackendError(f"--precision {precision}: {of_gpu} {capability} has {', '.join(available)}")
    return target


def _rtx_target(precision: GraphPrecision, options: PlanOptions) -> PlanTarget:
    if options.hardware != "same" or options.version_compatible or options.dla is not None:
        raise BackendError(
            "--hardware, --version-compatible and --dla are for the backend tensorrt; tensorrt-rtx takes "
            "--compute-capability"
        )
    unknown = set(options.compute_capabilities) - set(CAPABILITIES)
    if unknown:
        raise BackendError(f"--compute-capability {min(unknown)}: tensorrt-rtx builds for {', '.join(CAPABILITIES)}")
    able = tuple(one for one in DEFAULT_CAPABILITIES if precision in _precisions_of("tensorrt-rtx", one))
    return PlanTarget(open_tensorrt_rtx(), None, options.compute_capabilities or able)


def _precisions_of(backend: BundleBackend, compute_capability: str) -> tuple[EnginePrecision, ...]:
    """Return the precisions that a backend has on a GPU: Turing has neither fp8 nor bf16, Ampere no fp8."""
    capability = tuple(map(int, compute_capability.split(".")))
    if capability >= (8, 9):
        return get_args(EnginePrecision)
    if capability >= (8, 0):
        return ("fp32", "fp16", "bf16", "int8")
    # TensorRT-RTX refuses products in float32 there.
    return ("fp16", "int8") if backend == "tensorrt-rtx" else ("fp32", "fp16", "int8")


def build_plans(
    target: PlanTarget,
    manifest: Manifest,
    folder: Path,
    previous: Bundle | None,
    options: PlanOptions,
    progress: BuildReporter,
) -> tuple[PlanRecord, ...]:
    """Build a plan of each graph in ``folder``, beside it.

    Args:
        manifest: the manifest of the graphs' bundle.
        previous: a bundle whose plans are reused where nothing that they depend on has changed.

    Raises:
        BackendError: TensorRT will not accept a graph, or cannot build it.
    """
    profiles = {folder / manifest.engines[name].file: of_graph for name, of_graph in profiles_of(manifest).items()}
    for graph, of_graph in profiles.items():
        _lint_graph(graph, target.api, of_graph)
    records = []
    for graph, of_graph in profiles.items():
        progress.step(f"{graph.name} to a plan for {target.name}")
        records.append(build_plan(target, graph, of_graph, options, previous, progress.phase))
    return tuple(records)


def _lint_graph(graph: Path, api: TensorRtApi, profiles: Sequence[Profile]) -> None:
    """Raise for what TensorRT would refuse minutes later and with a less helpful message."""
    errors = [found for found in lint(graph, api.release, profiles) if found.severity == "error"]
    if errors:
        more = f", and {len(errors) - 1} more: patchcaption lint" if len(errors) > 1 else ""
        raise BackendError(f"{graph.name}: {api.name} will not take it: {errors[0]}{more}")
