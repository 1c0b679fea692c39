"""The names of NVIDIA's `tensorrt` that this project may use, written by hand from its public documentation.

Two surfaces: that of 10.3 (JetPack 6), with only what later versions have too, and that of 11, where `TENSORRT_11` is
true: `mypy --always-true TENSORRT_11`. What one of them lacks is reached by `getattr` only, with a fallback beside it.
"""

from collections.abc import Iterator
from typing import ClassVar, TypeAlias, overload

from typing_extensions import Buffer

TENSORRT_11: bool

__version__: str

class Enumeration:
    """What pybind makes of an enumeration: unlike `enum.Enum` neither iterable nor subscriptable, and no integer."""

    @property
    def name(self) -> str: ...
    def __int__(self) -> int: ...

class DataType(Enumeration):
    FLOAT: ClassVar[DataType]
    HALF: ClassVar[DataType]
    BF16: ClassVar[DataType]
    FP8: ClassVar[DataType]
    INT4: ClassVar[DataType]
    INT8: ClassVar[DataType]
    INT32: ClassVar[DataType]
    INT64: ClassVar[DataType]
    UINT8: ClassVar[DataType]
    BOOL: ClassVar[DataType]

class TensorIOMode(Enumeration):
    NONE: ClassVar[TensorIOMode]
    INPUT: ClassVar[TensorIOMode]
    OUTPUT: ClassVar[TensorIOMode]

class DeviceType(Enumeration):
    GPU: ClassVar[DeviceType]
    DLA: ClassVar[DeviceType]

class BuilderFlag(Enumeration):
    if not TENSORRT_11:
        FP16: ClassVar[BuilderFlag]
        INT8: ClassVar[BuilderFlag]
        BF16: ClassVar[BuilderFlag]
        FP8: ClassVar[BuilderFlag]
        INT4: ClassVar[BuilderFlag]
        OBEY_PRECISION_CONSTRAINTS: ClassVar[BuilderFlag]
        PREFER_PRECISION_CONSTRAINTS: ClassVar[BuilderFlag]
        REJECT_EMPTY_ALGORITHMS: ClassVar[BuilderFlag]
    else:
        EDITABLE_TIMING_CACHE: ClassVar[BuilderFlag]
        DISTRIBUTIVE_INDEPENDENCE: ClassVar[BuilderFlag]
    DEBUG: ClassVar[BuilderFlag]
    GPU_FALLBACK: ClassVar[BuilderFlag]
    REFIT: ClassVar[BuilderFlag]
    REFIT_IDENTICAL: ClassVar[BuilderFlag]
    DISABLE_TIMING_CACHE: ClassVar[BuilderFlag]
    ERROR_ON_TIMING_CACHE_MISS: ClassVar[BuilderFlag]
    DISABLE_COMPILATION_CACHE: ClassVar[BuilderFlag]
    TF32: ClassVar[BuilderFlag]
    SPARSE_WEIGHTS: ClassVar[BuilderFlag]
    STRIP_PLAN: ClassVar[BuilderFlag]
    WEIGHT_STREAMING: ClassVar[BuilderFlag]
    VERSION_COMPATIBLE: ClassVar[BuilderFlag]
    EXCLUDE_LEAN_RUNTIME: ClassVar[BuilderFlag]

class NetworkDefinitionCreationFlag(Enumeration):
    if not TENSORRT_11:
        EXPLICIT_BATCH: ClassVar[NetworkDefinitionCreationFlag]
    STRONGLY_TYPED: ClassVar[NetworkDefinitionCreationFlag]

class HardwareCompatibilityLevel(Enumeration):
    NONE: ClassVar[HardwareCompatibilityLevel]
    AMPERE_PLUS: ClassVar[HardwareCompatibilityLevel]
    if TENSORRT_11:
        SAME_COMPUTE_CAPABILITY: ClassVar[HardwareCompatibilityLevel]

class MemoryPoolType(Enumeration):
    WORKSPACE: ClassVar[MemoryPoolType]
    DLA_MANAGED_SRAM: ClassVar[MemoryPoolType]
    DLA_LOCAL_DRAM: ClassVar[MemoryPoolType]
    DLA_GLOBAL_DRAM: ClassVar[MemoryPoolType]
    TACTIC_DRAM: ClassVar[MemoryPoolType]

class ProfilingVerbosity(Enumeration):
    LAYER_NAMES_ONLY: ClassVar[ProfilingVerbosity]
    NONE: ClassVar[ProfilingVerbosity]
    DETAILED: ClassVar[ProfilingVerbosity]

class ExecutionContextAllocationStrategy(Enumeration):
    STATIC: ClassVar[ExecutionContextAllocationStrategy]
    ON_PROFILE_CHANGE: ClassVar[ExecutionContextAllocationStrategy]
    USER_MANAGED: ClassVar[ExecutionContextAllocationStrategy]

class LayerInformationFormat(Enumeration):
    ONELINE: ClassVar[LayerInformationFormat]
    JSON: ClassVar[LayerInformationFormat]

class ILogger:
    class Severity(Enumeration):
        INTERNAL_ERROR: ClassVar[ILogger.Severity]
        ERROR: ClassVar[ILogger.Severity]
        WARNING: ClassVar[ILogger.Severity]
        INFO: ClassVar[ILogger.Severity]
        VERBOSE: ClassVar[ILogger.Severity]

    def __init__(self) -> None: ...
    def log(self, severity: Severity, msg: str) -> None: ...

class IProgressMonitor:
    def __init__(self) -> None: ...
    def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None: ...
    def step_complete(self, phase_name: str, step: int) -> bool: ...
    def phase_finish(self, phase_name: str) -> None: ...

class Dims:
    """A shape: equal to a tuple of the same sizes, but neither a `Sequence` nor hashable; it is iterated by index."""

    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[int]: ...
    @overload
    def __getitem__(self, index: int) -> int: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[int, ...]: ...

Shape: TypeAlias = tuple[int, ...] | list[int] | Dims

class IHostMemory(Buffer):
    """Bytes behind the buffer protocol, which are not `bytes` and have no length."""

    @property
    def nbytes(self) -> int: ...

class INetworkDefinition: ...

class ITimingCache:
    def serialize(self) -> IHostMemory: ...

class IOptimizationProfile:
    def set_shape(self, input: str, min: Shape, opt: Shape, max: Shape) -> None: ...

class IBuilderConfig:
    builder_optimization_level: int
    max_aux_streams: int
    profiling_verbosity: ProfilingVerbosity
    hardware_compatibility_level: HardwareCompatibilityLevel
    progress_monitor: IProgressMonitor | None
    default_device_type: DeviceType
    DLA_core: int
    def set_flag(self, flag: BuilderFlag) -> None: ...
    def clear_flag(self, flag: BuilderFlag) -> None: ...
    def set_memory_pool_limit(self, pool: MemoryPoolType, pool_size: int) -> None: ...
    def add_optimization_profile(self, profile: IOptimizationProfile) -> int: ...
    def create_timing_cache(self, serialized_timing_cache: bytes) -> ITimingCache | None: ...
    def set_timing_cache(self, cache: ITimingCache, ignore_mismatch: bool) -> bool: ...

class Builder:
    def __init__(self, logger: ILogger) -> None: ...
    def create_network(self, flags: int = 0) -> INetworkDefinition | None: ...
    def create_builder_config(self) -> IBuilderConfig | None: ...
    def create_optimization_profile(self) -> IOptimizationProfile: ...
    def build_serialized_network(self, network: INetworkDefinition, config: IBuilderConfig) -> IHostMemory | None: ...
    if not TENSORRT_11:
        @property
        def platform_has_fast_fp16(self) -> bool: ...

class ParserError:
    def desc(self) -> str: ...
    def node(self) -> int: ...
    def node_name(self) -> str: ...
    def node_operator(self) -> str: ...

class OnnxParser:
    def __init__(self, network: INetworkDefinition, logger: ILogger) -> None: ...
    def parse(self, model: bytes, path: str | None = None) -> bool: ...
    def parse_from_file(self, model: str) -> bool: ...
    @property
    def num_errors(self) -> int: ...
    def get_error(self, index: int) -> ParserError: ...
    if not TENSORRT_11:
        def supports_model(self, model: bytes, path: str | None = None) -> tuple[bool, object]: ...

class IExecutionContext:
    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool: ...
    def set_device_memory(self, memory: int, size: int) -> None: ...
    def set_input_shape(self, name: str, shape: Shape) -> bool: ...
    def infer_shapes(self) -> list[str]: ...
    def get_tensor_shape(self, name: str) -> Dims: ...
    def set_tensor_address(self, name: str, memory: int) -> bool: ...
    def execute_async_v3(self, stream_handle: int) -> bool: ...
    if not TENSORRT_11:
        @property
        def all_shape_inputs_specified(self) -> bool: ...

class EngineInspector:
    def get_engine_information(self, format: LayerInformationFormat) -> str: ...

class ICudaEngine:
    @property
    def num_io_tensors(self) -> int: ...
    @property
    def num_optimization_profiles(self) -> int: ...
    def get_device_memory_size_for_profile_v2(self, profile_index: int) -> int: ...
    def get_tensor_name(self, index: int) -> str: ...
    def get_tensor_mode(self, name: str) -> TensorIOMode: ...
    def get_tensor_dtype(self, name: str) -> DataType: ...
    def get_tensor_shape(self, name: str) -> Dims: ...
    def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[Dims]: ...
    def create_execution_context(
        self, strategy: ExecutionContextAllocationStrategy = ...
    ) -> IExecutionContext | None: ...
    def create_engine_inspector(self) -> EngineInspector | None: ...
    if not TENSORRT_11:
        def create_execution_context_without_device_memory(self) -> IExecutionContext | None: ...
        @property
        def device_memory_size(self) -> int: ...

class Runtime:
    engine_host_code_allowed: bool
    def __init__(self, logger: ILogger) -> None: ...
    def deserialize_cuda_engine(self, serialized_engine: bytes) -> ICudaEngine | None: ...
