"""The half of TensorRT that builds: logger, network, parser, configuration, builder."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx

from tests.tensorrt_double.contract import State, require, require_initialized
from tests.tensorrt_double.parser_rules import refusals

_MAGIC = b"PLAN"


class ILogger:
    class Severity:
        INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)

    def __init__(self) -> None:
        self._base_was_initialized = True

    def log(self, severity: int, msg: str) -> None:
        raise NotImplementedError


class IProgressMonitor:
    def __init__(self) -> None:
        self._base_was_initialized = True

    def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
        raise NotImplementedError

    def step_complete(self, phase_name: str, step: int) -> bool:
        raise NotImplementedError

    def phase_finish(self, phase_name: str) -> None:
        raise NotImplementedError


class HostMemory:
    """The result of a builder: bytes behind the buffer protocol, which are not `bytes`."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    @property
    def nbytes(self) -> int:
        return len(self._data)

    def __bytes__(self) -> bytes:
        return self._data

    def __buffer__(self, flags: int) -> memoryview:
        return memoryview(self._data)


class Network:
    def __init__(self, flags: int) -> None:
        self.flags = flags
        self.model: onnx.ModelProto | None = None


class ParserError:
    def __init__(self, desc: str) -> None:
        self._desc = desc

    def desc(self) -> str:
        return self._desc

    def node(self) -> int:
        return 3


class TimingCache:
    def __init__(self, data: bytes) -> None:
        self.data = data

    def serialize(self) -> HostMemory:
        return HostMemory(self.data + b".")


class OptimizationProfile:
    def __init__(self) -> None:
        self.shapes: dict[str, tuple[tuple[int, ...], ...]] = {}

    def set_shape(self, input: str, min: tuple[int, ...], opt: tuple[int, ...], max: tuple[int, ...]) -> None:
        if not all(low <= best <= high for low, best, high in zip(min, opt, max, strict=True)):
            raise ValueError("min <= opt <= max does not hold")
        self.shapes[input] = (tuple(min), tuple(opt), tuple(max))


class BuilderConfig:
    """A configuration; attributes that no TensorRT has cannot be set."""

    _RTX_SETTABLE = frozenset({"num_compute_capabilities"})
    _SETTABLE = frozenset(
        {
            "builder_optimization_level",
            "max_aux_streams",
            "profiling_verbosity",
            "hardware_compatibility_level",
            "progress_monitor",
            "default_device_type",
            "DLA_core",
        }
    )

    _double: Any
    _state: State
    flags: set[Any]
    profiles: list[OptimizationProfile]
    pools: dict[Any, int]
    timing_cache: TimingCache | None
    progress_monitor: Any
    num_compute_capabilities: int
    hardware_compatibility_level: Any

    def __init__(self, double: Any, state: State) -> None:
        fields: dict[str, Any] = {"_double": double, "_state": state, "flags": {double.BuilderFlag.TF32}}
        fields |= {"profiles": [], "pools": {}, "timing_cache": None, "progress_monitor": None}
        fields |= {"hardware_compatibility_level": double.HardwareCompatibilityLevel.NONE}
        self.__dict__.update(fields)

    def __setattr__(self, name: str, value: object) -> None:
        if name not in self._SETTABLE and not (self._state.is_rtx and name in self._RTX_SETTABLE):
            raise AttributeError(f"IBuilderConfig has no attribute {name!r}")
        if name == "progress_monitor":
            require_initialized(value, IProgressMonitor)
        self.__dict__[name] = value

    def set_compute_capability(self, compute_capability: Any, index: int) -> bool:
        require(self._state.is_rtx, "only TensorRT for RTX has it")
        require(isinstance(compute_capability, self._double.ComputeCapability), "no ComputeCapability")
        return 0 <= index < int(self.num_compute_capabilities)

    def set_flag(self, flag: Any) -> None:
        require(isinstance(flag, self._double.BuilderFlag), f"{flag!r} is no BuilderFlag")
        self.flags.add(flag)

    def clear_flag(self, flag: Any) -> None:
        self.flags.discard(flag)

    def get_flag(self, flag: Any) -> bool:
        return flag in self.flags

    def set_memory_pool_limit(self, pool: Any, pool_size: int) -> None:
        self.pools[pool] = pool_size

    def add_optimization_profile(self, profile: OptimizationProfile) -> int:
        if "add_optimization_profile" in self._state.faults.returns_nothing:
            return -1
        self.profiles.append(profile)
        return len(self.profiles) - 1

    def create_timing_cache(self, serialized_timing_cache: bytes) -> TimingCache:
        return TimingCache(bytes(serialized_timing_cache) or self._state.version.encode())

    def set_timing_cache(self, cache: TimingCache, ignore_mismatch: bool) -> bool:
        fits = ignore_mismatch or cache.data.startswith(self._state.version.encode())
        if fits:
            self.__dict__["timing_cache"] = cache
        return fits

    def get_timing_cache(self) -> TimingCache | None:
        return self.timing_cache


def building_names(double: Any, state: State) -> Mapping[str, Any]:
    """Return the classes of this half, for one double."""

    class OnnxParser:
        def __init__(self, network: Network, logger: ILogger) -> None:
            require_initialized(logger, ILogger)
            self._network, self._errors = network, list(map(ParserError, state.faults.parser_errors))

        @property
        def num_errors(self) -> int:
            return len(self._errors)

        def get_error(self, index: int) -> ParserError:
            return self._errors[index]

        def parse_from_file(self, model: str) -> bool:
            state.call("parse_from_file", Path(model).name)
            return self._add(onnx.load(model))

        def parse(self, model: bytes, path: str | None = None) -> bool:  # noqa: ARG002
            state.call("parse", len(model))
            return self._add(onnx.load_from_string(model))

        def _add(self, model: onnx.ModelProto) -> bool:
            self._errors += map(ParserError, refusals(model))
            if self._errors:
                return False
            self._network.model = model
            return True

    class Builder:
        def __init__(self, logger: ILogger) -> None:
            require_initialized(logger, ILogger)
            self._logger = logger

        def create_network(self, flags: int = 0) -> Network:
            typed = 1 << int(double.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
            require(bool(flags & typed) or state.is_rtx or state.numbers[0] >= 11, "the network is weakly typed")
            return Network(flags)

        def create_builder_config(self) -> BuilderConfig:
            return BuilderConfig(double, state)

        def create_optimization_profile(self) -> OptimizationProfile:
            return OptimizationProfile()

        def build_serialized_network(self, network: Network, config: BuilderConfig) -> HostMemory | None:
            state.call("build_serialized_network")
            require(network.model is not None, "a network without a graph was built")
            assert network.model is not None
            if state.fails("build_serialized_network", self._logger, ILogger.Severity.ERROR):
                return None
            _check_profiles(network.model, config.profiles)
            if not _report_progress(config.progress_monitor):
                return None
            plan = {
                "model": _serialize(network.model),
                "profiles": [profile.shapes for profile in config.profiles],
                "version": state.version,
                "gpu": state.gpu,
                "flags": sorted(flag.name for flag in config.flags),
                "level": config.hardware_compatibility_level.name,
            }
            return HostMemory(_MAGIC + pickle.dumps(plan))

    return {
        "ILogger": ILogger,
        "IProgressMonitor": IProgressMonitor,
        "OnnxParser": OnnxParser,
        "Builder": Builder,
        "HostMemory": HostMemory,
    }


def read_plan(data: bytes) -> dict[str, Any] | None:
    """Return the contents of a plan; None for other data."""
    return pickle.loads(data[len(_MAGIC) :]) if data.startswith(_MAGIC) else None


def _check_profiles(model: onnx.ModelProto, profiles: list[OptimizationProfile]) -> None:
    """Require a range for every dynamic dimension in every profile, and the graph's size for every other one."""
    for value in model.graph.input:
        sizes = [None if dim.dim_param else dim.dim_value for dim in value.type.tensor_type.shape.dim]
        if None in sizes:
            require(bool(profiles), f"{value.name} is dynamic, and there is no profile")
        for index, profile in enumerate(profiles):
            if None in sizes:
                require(value.name in profile.shapes, f"profile {index} does not cover {value.name}")
            for shape in profile.shapes.get(value.name, ()):
                fits = len(shape) == len(sizes) and all(
                    size in (None, chosen) for size, chosen in zip(sizes, shape, strict=True)
                )
                require(fits, f"profile {index}: {value.name} cannot be {shape}")


def _report_progress(monitor: Any) -> bool:
    """Report a build's phases; return False if the monitor stopped it."""
    if monitor is None:
        return True
    monitor.phase_start("Building", None, 2)
    monitor.phase_start("Tactics", "Building", 1)
    goes_on = monitor.step_complete("Tactics", 0)
    monitor.phase_finish("Tactics")
    goes_on = goes_on and monitor.step_complete("Building", 0) and monitor.step_complete("Building", 1)
    monitor.phase_finish("Building")
    return bool(goes_on)


def _serialize(model: onnx.ModelProto) -> bytes:
    for tensor in model.graph.initializer:
        require(not tensor.external_data or tensor.HasField("raw_data"), f"{tensor.name} was not loaded")
    return model.SerializeToString()
