"""The half of TensorRT that builds: NVIDIA's parser and builder judge, and the plan is the graph.

Logger, progress monitor and profiles are NVIDIA's own classes. What only TensorRT has is imitated from its
documentation: the flags of 10.x, timing caches, hardware levels and DLA.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnx

from tests.tensorrt_double.bindings import IHostMemory, bound, member_of, real_tensorrt
from tests.tensorrt_double.contract import State, require
from tests.tensorrt_double.verdicts import build_and_record, replay_progress, verdict_on

_MAGIC = b"PLAN"


class INetworkDefinition:
    """A network of NVIDIA's builder, and the graph that was read into it."""

    __slots__ = ("model", "real")

    def __init__(self, real: Any) -> None:
        self.real = real
        self.model: onnx.ModelProto | None = None


class ParserError:
    """A fault shown on purpose; other errors are NVIDIA's."""

    def __init__(self, desc: str) -> None:
        self._desc = desc

    def desc(self) -> str:
        return self._desc

    def node(self) -> int:
        return 3

    def node_name(self) -> str:
        return "node_3"

    def node_operator(self) -> str:
        return "MatMul"


class ITimingCache:
    """The version of the TensorRT that it is of, and a dot for each build."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def serialize(self) -> IHostMemory:
        return IHostMemory(self.data + b".")


def _real_number(name: str) -> property:
    """Return a setting that NVIDIA's configuration checks and keeps."""

    def set_number(self: IBuilderConfig, value: int) -> None:
        setattr(self.real, name, value)

    return property(lambda self: getattr(self.real, name), set_number)


def _member(kind: str) -> property:
    """Return a setting that is a member of one of the double's enumerations."""

    def set_member(self: IBuilderConfig, value: object) -> None:
        self.values[kind] = member_of(getattr(self.double, kind), value)

    return property(lambda self: self.values[kind], set_member)


def _number(name: str) -> property:
    """Return a setting that is a number of the double's own."""

    def set_number(self: IBuilderConfig, value: int) -> None:
        self.values[name] = value

    return property(lambda self: self.values[name], bound(set_number))


class IBuilderConfig:
    """A configuration; attributes that no TensorRT has cannot be set."""

    __slots__ = ("_monitor", "_state", "double", "flags", "pools", "profiles", "real", "values")

    builder_optimization_level = _real_number("builder_optimization_level")
    max_aux_streams = _real_number("max_aux_streams")
    profiling_verbosity = _member("ProfilingVerbosity")
    hardware_compatibility_level = _member("HardwareCompatibilityLevel")
    default_device_type = _member("DeviceType")
    DLA_core = _number("DLA_core")

    def __init__(self, double: Any, state: State, real: Any) -> None:
        self.double, self._state, self.real = double, state, real
        self.flags = {double.BuilderFlag.TF32}
        self.profiles: list[Any] = []
        self.pools: dict[Any, int] = {}
        self.values: dict[str, Any] = {
            "ProfilingVerbosity": double.ProfilingVerbosity.LAYER_NAMES_ONLY,
            "HardwareCompatibilityLevel": double.HardwareCompatibilityLevel.NONE,
            "DeviceType": double.DeviceType.GPU,
            "DLA_core": -1,
        }
        self._monitor: Any = None

    @property
    def progress_monitor(self) -> Any:
        return self._monitor

    @progress_monitor.setter
    def progress_monitor(self, monitor: Any) -> None:
        self.real.progress_monitor = monitor  # which refuses what is none
        self._monitor = monitor

    def set_flag(self, flag: Any) -> None:
        self.flags.add(member_of(self.double.BuilderFlag, flag))

    def clear_flag(self, flag: Any) -> None:
        self.flags.discard(member_of(self.double.BuilderFlag, flag))

    @bound
    def set_memory_pool_limit(self, pool: Any, pool_size: int) -> None:
        if pool_size < 0:
            raise TypeError(f"set_memory_pool_limit(): incompatible function arguments: pool_size={pool_size}")
        self.pools[member_of(self.double.MemoryPoolType, pool)] = pool_size

    def add_optimization_profile(self, profile: Any) -> int:
        if "add_optimization_profile" in self._state.faults.returns_nothing:
            return -1
        index: int = self.real.add_optimization_profile(profile)
        if index >= 0:
            self.profiles.append(profile)
        return index

    @bound
    def create_timing_cache(self, serialized_timing_cache: bytes) -> ITimingCache:
        return ITimingCache(bytes(serialized_timing_cache) or self._state.version.encode())

    def set_timing_cache(self, cache: ITimingCache, ignore_mismatch: bool) -> bool:
        # TensorRT for RTX times nothing, and takes any.
        return self._state.is_rtx or ignore_mismatch or cache.data.startswith(self._state.version.encode())

    def verdict_parts(self) -> tuple[object, ...]:
        """Return what NVIDIA's builder judges by."""
        return (self.real.builder_optimization_level, self.real.max_aux_streams)


class RtxBuilderConfig(IBuilderConfig):
    """The configuration of TensorRT for RTX."""

    __slots__ = ("_capabilities",)

    num_compute_capabilities = _real_number("num_compute_capabilities")

    def __init__(self, double: Any, state: State, real: Any) -> None:
        super().__init__(double, state, real)
        self._capabilities: dict[int, str] = {}

    def set_compute_capability(self, compute_capability: Any, index: int) -> bool:
        name = member_of(self.double.ComputeCapability, compute_capability).name
        is_set: bool = self.real.set_compute_capability(getattr(real_tensorrt().ComputeCapability, name), index)
        if is_set:
            self._capabilities[index] = name
        return is_set

    def verdict_parts(self) -> tuple[object, ...]:
        return (*super().verdict_parts(), self.num_compute_capabilities, sorted(self._capabilities.items()))


def building_names(double: Any, state: State) -> Mapping[str, Any]:
    """Return the classes of this half, for one double."""
    real = real_tensorrt()

    class OnnxParser:
        def __init__(self, network: INetworkDefinition, logger: Any) -> None:
            self._network, self._real = network, real.OnnxParser(getattr(network, "real", network), logger)
            self._faults = list(map(ParserError, state.faults.parser_errors))

        @property
        def num_errors(self) -> int:
            return len(self._faults) or int(self._real.num_errors)

        @bound
        def get_error(self, index: int) -> Any:
            return self._faults[index] if self._faults else self._real.get_error(index)

        def parse_from_file(self, model: str) -> bool:
            state.call("parse_from_file", Path(model).name)
            if self._faults or not self._real.parse_from_file(model):
                return False
            self._network.model = onnx.load(model)
            return True

        def parse(self, model: bytes, path: str | None = None) -> bool:
            state.call("parse")
            if self._faults or not self._real.parse(model, path):
                return False
            self._network.model = onnx.load_from_string(model)
            return True

    class Relay(real.ILogger):  # type: ignore[name-defined, misc]  # the module is known at run time only
        """Passes on what a builder logs, but for what is recorded instead."""

        def __init__(self, logger: Any) -> None:
            real.ILogger.__init__(self)
            self._logger = logger
            self._record: list[tuple[int, str]] | None = None

        @contextmanager
        def recording(self) -> Iterator[list[tuple[int, str]]]:
            self._record = []
            yield self._record
            self._record = None

        def log(self, severity: Any, msg: str) -> None:
            if self._record is None:
                self._logger.log(severity, msg)
            elif int(severity) <= int(real.ILogger.Severity.WARNING):
                self._record.append((int(severity), msg))

    class Builder:
        __slots__ = ("_logger", "_real", "_relay")

        def __init__(self, logger: Any) -> None:
            if not isinstance(logger, real.ILogger):
                raise TypeError(f"__init__(): incompatible constructor arguments: logger={logger!r}")
            self._logger, self._relay = logger, Relay(logger)
            self._real = real.Builder(self._relay)

        @bound
        def create_network(self, flags: int = 0) -> INetworkDefinition | None:
            known = sum(1 << int(flag) for flag in double.NetworkDefinitionCreationFlag.__members__.values())
            if flags & ~known:
                self._real.create_network(flags | 1 << 30)  # which says why it refuses
                return None
            typed = 1 << int(double.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
            require(bool(flags & typed) or state.is_rtx or state.numbers[0] >= 11, "the network is weakly typed")
            return INetworkDefinition(self._real.create_network())

        def create_builder_config(self) -> IBuilderConfig:
            return double.IBuilderConfig(double, state, self._real.create_builder_config())

        def create_optimization_profile(self) -> Any:
            return self._real.create_optimization_profile()

        def build_serialized_network(self, network: INetworkDefinition, config: IBuilderConfig) -> IHostMemory | None:
            state.call("build_serialized_network")
            if not isinstance(network, INetworkDefinition) or not isinstance(config, IBuilderConfig):
                raise TypeError("build_serialized_network(): incompatible function arguments")
            if state.fails("build_serialized_network", self._logger):
                return None
            with self._relay.recording():  # a profile logs what it lacks
                profiles = [_shapes(network, profile) for profile in config.profiles]
            if not self._is_built(network, config, profiles):
                return None
            assert network.model is not None
            plan = {
                "model": network.model.SerializeToString(),
                "profiles": profiles,
                "version": state.version,
                "gpu": state.gpu,
                "flags": sorted(flag.name for flag in config.flags),
                "level": config.hardware_compatibility_level.name,
            }
            return IHostMemory(_MAGIC + pickle.dumps(plan))

        def _is_built(self, network: INetworkDefinition, config: IBuilderConfig, profiles: list[Any]) -> bool:
            """Return what NVIDIA's builder says, with what it logs and reports."""
            graph = _serialize(network.model) if network.model else b""
            verdict = verdict_on((graph, profiles, *config.verdict_parts()), lambda: self._build(network, config))
            is_complete = replay_progress(verdict, config.progress_monitor)
            log = verdict.log if is_complete else [(int(real.ILogger.Severity.ERROR), "Build canceled by user")]
            for severity, message in log:
                self._logger.log(real.ILogger.Severity(severity), message)
            return verdict.is_built and is_complete

        def _build(self, network: INetworkDefinition, config: IBuilderConfig) -> Any:
            with self._relay.recording() as log:
                return build_and_record(self._real, network.real, config.real, log)

    return {
        "ILogger": real.ILogger,
        "IProgressMonitor": real.IProgressMonitor,
        "IOptimizationProfile": real.IOptimizationProfile,
        "Dims": real.Dims,
        "OnnxParser": OnnxParser,
        "ParserError": ParserError,
        "INetworkDefinition": INetworkDefinition,
        "ITimingCache": ITimingCache,
        "IBuilderConfig": RtxBuilderConfig if state.is_rtx else IBuilderConfig,
        "IHostMemory": IHostMemory,
        "Builder": Builder,
    }


def read_plan(data: bytes) -> dict[str, Any] | None:
    """Return the contents of a plan; None for other data."""
    return pickle.loads(data[len(_MAGIC) :]) if data.startswith(_MAGIC) else None


def _shapes(network: INetworkDefinition, profile: Any) -> dict[str, tuple[tuple[int, ...], ...]]:
    """Return the shapes that a profile has for inputs of a network."""
    names = [network.real.get_input(index).name for index in range(network.real.num_inputs)]
    shapes = {name: tuple(map(tuple, profile.get_shape(name))) for name in names}
    return {name: of_input for name, of_input in shapes.items() if of_input}


def _serialize(model: onnx.ModelProto) -> bytes:
    for tensor in model.graph.initializer:
        require(not tensor.external_data or tensor.HasField("raw_data"), f"{tensor.name} was not loaded")
    return model.SerializeToString()
