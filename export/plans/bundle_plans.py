"""The TensorRT plans of a bundle."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from export.lint import lint
from export.plans.builder import PlanOptions, Profile, build_plan, timing_cache_file
from export.plans.profiles import of_backbone, of_beam_decoder, of_decoder, of_reencoder
from runtime.backends.cuda.device import Gpu
from runtime.backends.tensorrt.api import TensorRt, open_tensorrt
from runtime.bundle import Bundle, EnginePrecision, Manifest, PlanRecord
from runtime.errors import BackendError

_FP8_CAPABILITY = (8, 9)


class Progress(Protocol):
    """Told how far a build is."""

    def step(self, description: str) -> None:
        """The next step has begun."""

    def phase(self, name: str, done: int, total: int) -> None:
        """So much of what TensorRT does within a step is done; 0 of 0 where it does not say how much there is."""

    def note(self, text: str) -> None:
        """Something that who builds should know."""


def open_for(precision: EnginePrecision) -> TensorRt:
    """TensorRT, for graphs of a precision on the GPU that is here.

    Raises:
        BackendError: TensorRT or a GPU is not here, or the GPU does not have the precision.
    """
    trt, gpu = open_tensorrt(), Gpu.here()
    if precision == "fp8" and tuple(map(int, gpu.compute_capability.split("."))) < _FP8_CAPABILITY:
        raise BackendError(
            f"--precision fp8: {gpu.name} has compute capability {gpu.compute_capability}, and fp8 takes 8.9 (Ada) or "
            "newer; use int8, fp16 or bf16"
        )
    return trt


def build_plans(
    trt: TensorRt, manifest: Manifest, folder: Path, before: Bundle | None, options: PlanOptions, progress: Progress
) -> tuple[PlanRecord, ...]:
    """A plan of each graph in ``folder``, beside it, for the GPU that is here.

    Args:
        manifest: of the graphs.
        before: a bundle whose plans are taken where nothing that they depend on has changed.

    Raises:
        BackendError: TensorRT will not take a graph, or cannot build it.
    """
    seen, decoding = manifest.architecture, manifest.decoding
    profiles = {
        manifest.backbone.file: of_backbone(seen),
        manifest.decoder.file: of_decoder(seen, decoding),
    }
    if manifest.reencoder:
        profiles[manifest.reencoder.file] = of_reencoder(seen, decoding)
    if manifest.beam_decoder:
        profiles[manifest.beam_decoder.file] = of_beam_decoder(seen, decoding)
    for graph, of_graph in profiles.items():
        _check_for_tensorrt(folder / graph, trt, of_graph)
    gpu, records = Gpu.here(), []
    for graph, of_graph in profiles.items():
        progress.step(f"{graph} to a TensorRT plan for {gpu.name}")
        cache = timing_cache_file(trt, gpu)
        records.append(build_plan(trt, gpu, folder / graph, of_graph, options, cache, before, progress.phase))
    return tuple(records)


def _check_for_tensorrt(graph: Path, trt: TensorRt, profiles: Sequence[Profile]) -> None:
    """Says what TensorRT would refuse before it does, minutes later and in its own words."""
    errors = [found for found in lint(graph, trt.release, profiles) if found.severity == "error"]
    if errors:
        more = f", and {len(errors) - 1} more: python -m export.lint" if len(errors) > 1 else ""
        raise BackendError(f"{graph.name}: TensorRT {trt.version} will not take it: {errors[0]}{more}")
