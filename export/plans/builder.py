"""Builds TensorRT plans of graphs: strongly typed, so that the precision is the graph's, in TensorRT 10.3 as in 11.

A plan depends on the graph, on TensorRT, on the GPU, on its profiles and on flags. Its key is a hash of all of that; a
plan of the same key is not built again.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from runtime.backends.cuda.device import Gpu
from runtime.backends.tensorrt.api import TensorRtApi
from runtime.backends.tensorrt.build import Profile, build_plan_bytes
from runtime.backends.tensorrt.rtx import set_build_targets
from runtime.bundle import Bundle, HeldFile, PlanHardware, PlanRecord, sha256_of
from runtime.bundle.admission import read_onnx_file
from runtime.bundle.trust import is_trusted, trust
from runtime.errors import BackendError, BundleError
from runtime.system.files import write_cache
from runtime.system.user_dirs import cache_file

if TYPE_CHECKING:
    import tensorrt

ProgressCallback: TypeAlias = Callable[[str, int, int], None]
"""Called with the name of a build phase, the steps of it that are done, and how many there are."""

_HARDWARE_LEVELS = {"same": "NONE", "same-capability": "SAME_COMPUTE_CAPABILITY", "ampere+": "AMPERE_PLUS"}


@dataclass(frozen=True)
class PlanOptions:
    """How plans are built.

    Attributes:
        workspace_mib: the most workspace that a plan may use; None for all that the GPU has.
        version_compatible: whether newer versions of the same major may load the plan.
        hardware: which other GPUs may load the plan.
        compute_capabilities: for TensorRT-RTX, the GPUs to build for; none for all that one plan serves.
        dla: the DLA core to build for, with the GPU for what it cannot do; None for the GPU alone.
        optimization_level: how long TensorRT looks for fast kernels, from 0 to 5.
    """

    workspace_mib: int | None = None
    version_compatible: bool = False
    hardware: PlanHardware = "same"
    compute_capabilities: tuple[str, ...] = ()
    dla: int | None = None
    optimization_level: int = 3


@dataclass(frozen=True, eq=False)
class PlanTarget:
    """The TensorRT that builds plans and the GPUs that they are for.

    Attributes:
        gpu: the GPU that they are built on; None where the builder needs none.
        compute_capabilities: of the GPUs that they are for.
    """

    api: TensorRtApi
    gpu: Gpu | None
    compute_capabilities: tuple[str, ...]

    @classmethod
    def on(cls, gpu: Gpu, api: TensorRtApi) -> PlanTarget:
        """Return the target of plans that are built on the GPU that they are for."""
        return cls(api, gpu, (gpu.compute_capability,))

    @property
    def name(self) -> str:
        """The GPUs, for messages."""
        return self.gpu.name if self.gpu else f"compute capability {', '.join(self.compute_capabilities)}"

    @property
    def timing_cache(self) -> Path | None:
        """The file of TensorRT's kernel timings, in the user's cache folder; those of others are of no use.

        None where the user has no such folder, or nothing is timed as the builder needs no GPU.
        """
        name = "".join(letter if letter.isalnum() else "-" for letter in f"{self.api.version}-{self.name}")
        return None if self.gpu is None else cache_file(f"timing-{name}.cache")


def build_plan(
    target: PlanTarget,
    graph: Path,
    profiles: Sequence[Profile],
    options: PlanOptions,
    previous: Bundle | None,
    on_progress: ProgressCallback,
) -> PlanRecord:
    """Build a graph's plan beside it, or reuse that of an earlier bundle if nothing it depends on has changed.

    Plans that were built here are trusted (`runtime.bundle.trust`).

    Args:
        profiles: the shapes of all inputs with dynamic axes, for each use of the plan.
        previous: the bundle that is being replaced, if there is one.

    Raises:
        BackendError: TensorRT cannot build it; with its own message.
    """
    plan = graph.with_suffix(".plan")
    record = PlanRecord(
        graph=graph.name,
        file=plan.name,
        key=_key(target, graph, profiles, options),
        product=target.api.product,
        version=target.api.version,
        gpu=target.gpu.name if target.gpu else None,
        compute_capabilities=target.compute_capabilities,
        hardware=options.hardware if target.gpu else "same-capability",
        version_compatible=options.version_compatible,
        profiles=tuple(dict(profile) for profile in profiles),
    )
    reusable = _reusable_plan(previous, record)
    if reusable is None:
        plan.write_bytes(_build(target, graph, profiles, options, on_progress))
        trust(sha256_of(plan))
    else:
        on_progress("the plan of the last build still holds", 1, 1)
        shutil.copyfile(reusable, plan)
    return record


def _build(
    target: PlanTarget,
    graph: Path,
    profiles: Sequence[Profile],
    options: PlanOptions,
    on_progress: ProgressCallback,
) -> bytes:
    caches: list[tensorrt.ITimingCache] = []
    raised: list[BaseException] = []
    file = target.timing_cache

    def configure(config: tensorrt.IBuilderConfig) -> None:
        set_options(target, graph, config, options)
        if file is not None:
            caches.append(_read_timing_cache(target.api, config, file))
        config.progress_monitor = _monitor(target.api, on_progress, raised)

    try:
        plan = build_plan_bytes(
            target.api, lambda parser: parser.parse_from_file(str(graph)), profiles, str(graph), configure
        )
    except BackendError:
        if raised:
            raise raised[0] from None
        raise
    if file is not None:  # what TensorRT measured; without it the next build is only slower
        for cache in caches:
            write_cache(file, bytes(cache.serialize()))
    return plan


def _key(target: PlanTarget, graph: Path, profiles: Sequence[Profile], options: PlanOptions) -> str:
    """Return a hash of all that a plan depends on."""
    stored = [graph.parent / name for name in read_onnx_file(HeldFile(graph)).files]
    parts = {
        "graph": sha256_of(graph),
        "data": {path.name: sha256_of(path) for path in stored if path.is_file()},
        "tensorrt": target.api.name,
        "gpu": target.gpu.name if target.gpu else None,
        "compute_capabilities": target.compute_capabilities,
        "profiles": [{name: shapes.model_dump() for name, shapes in profile.items()} for profile in profiles],
        "options": asdict(options),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _reusable_plan(previous: Bundle | None, record: PlanRecord) -> Path | None:
    """Return the plan of the same key in an earlier bundle, if it is whole and trusted."""
    for plan in previous.manifest.plans if previous else ():
        if previous and plan.key == record.key and plan.file in previous.manifest.files:
            path = previous.path(plan.file)
            recorded = previous.manifest.files[plan.file].sha256
            if path.is_file() and sha256_of(path) == recorded and is_trusted(recorded):
                return path
    return None


def open_previous_bundle(folder: Path) -> Bundle | None:
    """Return the bundle in the folder where a new one is being built, if it can be read."""
    try:
        return Bundle(folder, verify=False)
    except BundleError:
        return None


def set_options(target: PlanTarget, graph: Path, config: tensorrt.IBuilderConfig, options: PlanOptions) -> None:
    """Set all options of a build but its profiles.

    Raises:
        BackendError: this TensorRT lacks one of them.
    """
    module = target.api.module
    if target.gpu is None:
        set_build_targets(target.api, config, target.compute_capabilities)
    else:
        _set_hardware_level(target.api, graph, config, options)
    if options.workspace_mib is not None:
        config.set_memory_pool_limit(module.MemoryPoolType.WORKSPACE, options.workspace_mib * 2**20)
    if options.version_compatible:
        config.set_flag(module.BuilderFlag.VERSION_COMPATIBLE)
    config.builder_optimization_level = options.optimization_level
    config.max_aux_streams = 0  # one stream, whose work can be captured as a graph
    config.profiling_verbosity = module.ProfilingVerbosity.DETAILED  # names of layers, which show what was fused
    # TF32, which is on by default, keeps 10 bits of a float32.
    config.clear_flag(module.BuilderFlag.TF32)
    if options.dla is not None:
        config.default_device_type = module.DeviceType.DLA
        config.DLA_core = options.dla
        config.set_flag(module.BuilderFlag.GPU_FALLBACK)


def _set_hardware_level(api: TensorRtApi, graph: Path, config: tensorrt.IBuilderConfig, options: PlanOptions) -> None:
    level = getattr(api.module.HardwareCompatibilityLevel, _HARDWARE_LEVELS[options.hardware], None)
    if level is None:
        raise BackendError(f"{graph}: {api.name} has no --hardware {options.hardware}; take ampere+ or same")
    config.hardware_compatibility_level = level


def _read_timing_cache(api: TensorRtApi, config: tensorrt.IBuilderConfig, file: Path) -> tensorrt.ITimingCache:
    """Return the timings of earlier builds; an empty cache where there are none, or they are another TensorRT's."""
    data = file.read_bytes() if file.is_file() else b""
    cache = config.create_timing_cache(data)
    if cache is None or not config.set_timing_cache(cache, False):
        cache = api.require(config.create_timing_cache(b""), "making a timing cache")
        api.require(config.set_timing_cache(cache, False), "taking a timing cache")
    return cache


def _monitor(api: TensorRtApi, on_progress: ProgressCallback, raised: list[BaseException]) -> tensorrt.IProgressMonitor:
    """Return a monitor that stops the build at the first exception, such as Ctrl-C, and puts it into ``raised``."""
    base = api.module.IProgressMonitor

    class Monitor(base):  # type: ignore[valid-type, misc]  # the module is known at run time only
        def __init__(self) -> None:
            base.__init__(self)
            self._steps: dict[str, int] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:  # noqa: ARG002
            self._steps[phase_name] = num_steps

        def step_complete(self, phase_name: str, step: int) -> bool:
            try:
                on_progress(phase_name, step, self._steps.get(phase_name, 0))
            except BaseException as error:  # TensorRT's bindings would print and drop it
                raised.append(error)
            return not raised

        def phase_finish(self, phase_name: str) -> None:
            self._steps.pop(phase_name, None)

    return Monitor()
