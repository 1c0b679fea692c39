"""Graphs to TensorRT plans: strongly typed, so that the precision is the graph's, in TensorRT 10.3 as in 11.

A plan depends on the graph, on TensorRT, on the GPU, on its profiles and on flags. All of that makes its key, and a
plan of the same key is not built again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from runtime.backends.cuda.device import Gpu
from runtime.backends.tensorrt.api import TensorRt
from runtime.bundle import Bundle, PlanHardware, PlanRecord, ShapeRange, sha256_of
from runtime.bundle.onnx_scan import graph_contents
from runtime.bundle.trust import is_trusted, trust
from runtime.errors import BackendError, BundleError
from runtime.system.files import write_atomically
from runtime.system.user_dirs import cache_folder

if TYPE_CHECKING:
    import tensorrt

Profile: TypeAlias = Mapping[str, ShapeRange]
Tell: TypeAlias = Callable[[str, int, int], None]
"""Told what TensorRT does, and how many steps of how many of it are done."""

_HARDWARE_LEVELS = {"same": "NONE", "same-capability": "SAME_COMPUTE_CAPABILITY", "ampere+": "AMPERE_PLUS"}


@dataclass(frozen=True)
class PlanOptions:
    """How plans are built.

    Attributes:
        workspace_mib: the most that TensorRT may take for what is in between; None for all there is.
        version_compatible: newer versions of the same major may load it.
        hardware: which other GPUs may.
        dla: the number of the DLA core to build for, with the GPU for what it cannot do; None for the GPU.
        optimization_level: 0 to 5: how long TensorRT looks for fast kernels.
    """

    workspace_mib: int | None = None
    version_compatible: bool = False
    hardware: PlanHardware = "same"
    dla: int | None = None
    optimization_level: int = 3


def build_plan(
    trt: TensorRt,
    gpu: Gpu,
    graph: Path,
    profiles: Sequence[Profile],
    options: PlanOptions,
    timing_cache: Path,
    before: Bundle | None,
    tell: Tell,
) -> PlanRecord:
    """Builds a graph's plan beside it, or takes that of an earlier bundle if nothing it depends on has changed. Plans
    that were built here are trusted; see `runtime.bundle.trust`.

    Args:
        profiles: the shapes of all inputs that have dynamic ones, for each way of using the plan.
        timing_cache: what TensorRT has measured of kernels; read, and written anew.
        before: the bundle that is being replaced, if there is one.

    Raises:
        BackendError: TensorRT cannot build it; with its own words.
    """
    plan = graph.with_suffix(".plan")
    record = PlanRecord(
        graph=graph.name,
        file=plan.name,
        key=_key(trt, gpu, graph, profiles, options),
        tensorrt=trt.version,
        gpu=gpu.name,
        compute_capability=gpu.compute_capability,
        hardware=options.hardware,
        version_compatible=options.version_compatible,
        profiles=tuple(dict(profile) for profile in profiles),
    )
    old = _same_plan(before, record)
    if old is None:
        plan.write_bytes(_built(trt, graph, profiles, options, timing_cache, tell))
        trust(sha256_of(plan))
    else:
        tell("the plan of the last build still holds", 1, 1)
        shutil.copyfile(old, plan)
    return record


def _key(trt: TensorRt, gpu: Gpu, graph: Path, profiles: Sequence[Profile], options: PlanOptions) -> str:
    stored = [graph.parent / name for name in graph_contents(graph).files]
    parts = {
        "graph": sha256_of(graph),
        "data": {path.name: sha256_of(path) for path in stored if path.is_file()},
        "tensorrt": trt.version,
        "gpu": asdict(gpu),
        "profiles": [{name: shapes.model_dump() for name, shapes in profile.items()} for profile in profiles],
        "options": asdict(options),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _same_plan(before: Bundle | None, record: PlanRecord) -> Path | None:
    for plan in before.manifest.plans if before else ():
        if before and plan.key == record.key and plan.file in before.manifest.files:
            path = before.path(plan.file)
            recorded = before.manifest.files[plan.file].sha256
            if path.is_file() and sha256_of(path) == recorded and is_trusted(recorded):
                return path
    return None


def last_bundle(folder: Path) -> Bundle | None:
    """The bundle that lies where a new one is being built, if it can be read."""
    try:
        return Bundle(folder, verify=False)
    except BundleError:
        return None


def _built(
    trt: TensorRt,
    graph: Path,
    profiles: Sequence[Profile],
    options: PlanOptions,
    timing_cache: Path,
    tell: Tell,
) -> bytes:
    import tensorrt

    builder = trt.checked(tensorrt.Builder(trt.logger), f"{graph}: starting a builder")
    # By name: its number differs between versions. From 11 on every network is strongly typed, flag or not.
    typed = tensorrt.NetworkDefinitionCreationFlag.STRONGLY_TYPED
    network = trt.checked(builder.create_network(1 << int(typed)), f"{graph}: making a network")
    parser = tensorrt.OnnxParser(network, trt.logger)
    if not parser.parse_from_file(str(graph)):
        errors = [_said_by(parser.get_error(number)) for number in range(parser.num_errors)]
        raise BackendError(f"{graph}: TensorRT {trt.version} cannot read it: {'; '.join(errors) or 'no reason given'}")
    config = trt.checked(builder.create_builder_config(), f"{graph}: making a configuration")
    _set_options(trt, graph, config, options)
    for number, profile in enumerate(profiles):
        made = builder.create_optimization_profile()
        for name, shapes in profile.items():
            try:
                made.set_shape(name, shapes.least, shapes.best, shapes.most)
            except (TypeError, ValueError) as error:
                raise BackendError(f"{graph}: profile {number}: {name}: {error}") from error
        index = config.add_optimization_profile(made)
        trt.checked(index >= 0, f"{graph}: profile {number}")
    cache = _read_timing_cache(trt, config, timing_cache)
    config.progress_monitor = _monitor(tell)
    plan = trt.checked(builder.build_serialized_network(network, config), f"{graph}: building its plan")
    if cache is not None:
        _write_timing_cache(timing_cache, cache.serialize())
    return bytes(plan)


def _set_options(trt: TensorRt, graph: Path, config: tensorrt.IBuilderConfig, options: PlanOptions) -> None:
    import tensorrt

    if options.workspace_mib is not None:
        config.set_memory_pool_limit(tensorrt.MemoryPoolType.WORKSPACE, options.workspace_mib * 2**20)
    if options.version_compatible:
        config.set_flag(tensorrt.BuilderFlag.VERSION_COMPATIBLE)
    level = getattr(tensorrt.HardwareCompatibilityLevel, _HARDWARE_LEVELS[options.hardware], None)
    if level is None:
        raise BackendError(
            f"{graph}: TensorRT {trt.version} has no --hardware {options.hardware}; take ampere+ or same"
        )
    config.hardware_compatibility_level = level
    config.builder_optimization_level = options.optimization_level
    config.max_aux_streams = 0  # one stream, whose work can be captured as a graph
    config.profiling_verbosity = tensorrt.ProfilingVerbosity.DETAILED  # names of layers, which show what was fused
    # float32 is float32: TF32, on by default, keeps 10 bits of it.
    config.clear_flag(tensorrt.BuilderFlag.TF32)
    if options.dla is not None:
        config.default_device_type = tensorrt.DeviceType.DLA
        config.DLA_core = options.dla
        config.set_flag(tensorrt.BuilderFlag.GPU_FALLBACK)


def _read_timing_cache(trt: TensorRt, config: tensorrt.IBuilderConfig, file: Path) -> tensorrt.ITimingCache:
    """What was measured before; an empty one where there is none, or it is another TensorRT's."""
    data = file.read_bytes() if file.is_file() else b""
    cache = config.create_timing_cache(data)
    if cache is None or not config.set_timing_cache(cache, False):
        cache = trt.checked(config.create_timing_cache(b""), "making a timing cache")
        trt.checked(config.set_timing_cache(cache, False), "taking a timing cache")
    return cache


def _write_timing_cache(file: Path, data: tensorrt.IHostMemory) -> None:
    """Keep what TensorRT measured; without it the next build is only slower."""
    with contextlib.suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        with write_atomically(file) as part:
            part.write_bytes(bytes(data))


def timing_cache_file(trt: TensorRt, gpu: Gpu) -> Path:
    """One for each version and GPU, in the user's cache folder: of others its numbers are of no use."""
    name = "".join(letter if letter.isalnum() else "-" for letter in f"{trt.version}-{gpu.name}")
    return cache_folder() / f"timing-{name}.cache"


def _monitor(tell: Tell) -> tensorrt.IProgressMonitor:
    import tensorrt

    class Monitor(tensorrt.IProgressMonitor):
        def __init__(self) -> None:
            tensorrt.IProgressMonitor.__init__(self)
            self._steps: dict[str, int] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:  # noqa: ARG002
            self._steps[phase_name] = num_steps

        def step_complete(self, phase_name: str, step: int) -> bool:
            tell(phase_name, step, self._steps.get(phase_name, 0))
            return True

        def phase_finish(self, phase_name: str) -> None:
            self._steps.pop(phase_name, None)

    return Monitor()


def _said_by(error: tensorrt.ParserError) -> str:
    return f"node {error.node()}: {error.desc()}"
