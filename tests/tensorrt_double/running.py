"""The half of TensorRT that runs, imitated from its documentation: runtime, engine, execution context, inspector.

Names and signatures are compared with NVIDIA's bindings; what the calls do cannot be, without a GPU.
"""

from __future__ import annotations

import ctypes
import json
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime

from tests.tensorrt_double.bindings import IHostMemory, bound, member_of, real_tensorrt
from tests.tensorrt_double.building import read_plan
from tests.tensorrt_double.contract import State, require

WORKSPACE_BYTES = 4096
"""The workspace of every context, for each of its profiles."""

_DTYPES = {
    onnx.TensorProto.FLOAT: ("FLOAT", np.float32),
    onnx.TensorProto.FLOAT16: ("HALF", np.float16),
    onnx.TensorProto.INT64: ("INT64", np.int64),
    onnx.TensorProto.INT32: ("INT32", np.int32),
    onnx.TensorProto.BOOL: ("BOOL", np.bool_),
    onnx.TensorProto.UINT8: ("UINT8", np.uint8),
    onnx.TensorProto.INT8: ("INT8", np.int8),
}


class Tensor:
    """An input or output of a graph."""

    def __init__(self, value: onnx.ValueInfoProto, is_input: bool) -> None:
        of_type = value.type.tensor_type
        self.name, self.is_input = value.name, is_input
        self.dtype_name, self.dtype = _DTYPES[of_type.elem_type]
        self.shape = tuple(dim.dim_param or dim.dim_value for dim in of_type.shape.dim)


class ICudaEngine:
    def __init__(self, double: Any, state: State, plan: dict[str, Any], logger: Any) -> None:
        self._double, self._state, self._plan, self._logger = double, state, plan, logger
        model = onnx.load_from_string(plan["model"])
        self._nodes = [node.op_type for node in model.graph.node]
        inputs = [Tensor(value, True) for value in model.graph.input]
        self._tensors = {one.name: one for one in [*inputs, *(Tensor(value, False) for value in model.graph.output)]}
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(plan["model"], options, providers=["CPUExecutionProvider"])

    @property
    def num_io_tensors(self) -> int:
        return len(self._tensors)

    @property
    def num_optimization_profiles(self) -> int:
        return max(1, len(self._plan["profiles"]))

    @bound
    def get_device_memory_size_for_profile_v2(self, profile_index: int) -> int:
        require(0 <= profile_index < self.num_optimization_profiles, f"there is no profile {profile_index}")
        return WORKSPACE_BYTES

    @bound
    def get_tensor_name(self, index: int) -> str:
        return list(self._tensors)[index]

    @bound
    def get_tensor_mode(self, name: str) -> Any:
        modes = self._double.TensorIOMode
        return modes.NONE if name not in self._tensors else (modes.OUTPUT, modes.INPUT)[self._tensors[name].is_input]

    @bound
    def get_tensor_dtype(self, name: str) -> Any:
        return getattr(self._double.DataType, self._tensors[name].dtype_name)

    @bound
    def get_tensor_shape(self, name: str) -> Any:
        return _dims(-1 if isinstance(size, str) else size for size in self._tensors[name].shape)

    @bound
    def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[Any]:
        require(self._tensors[name].is_input, f"{name} is no input")
        fixed = (self.get_tensor_shape(name),) * 3
        profiles = self._plan["profiles"]
        return list(map(_dims, profiles[profile_index].get(name, fixed) if profiles else fixed))

    def create_execution_context(self, strategy: Any = None) -> IExecutionContext | None:
        self._state.call("create_execution_context")
        if self._state.fails("create_execution_context", self._logger):
            return None
        managed = self._double.ExecutionContextAllocationStrategy.USER_MANAGED
        if isinstance(strategy, IRuntimeConfig):
            if strategy.cache is not None:
                strategy.cache.data += b"."
            strategy = strategy.strategy
        return IExecutionContext(self, self._state, is_user_managed=strategy == managed)

    def create_runtime_config(self) -> IRuntimeConfig:
        require(self._state.is_rtx, "only TensorRT for RTX compiles when it runs")
        return IRuntimeConfig(self._double)

    def create_engine_inspector(self) -> EngineInspector:
        return EngineInspector(self._nodes)


class IRuntimeCache:
    """What was compiled: a dot for each context, after a mark that an environment's caches begin with."""

    MARK = b"rtx"

    def __init__(self) -> None:
        self.data = self.MARK

    def serialize(self) -> IHostMemory:
        return IHostMemory(self.data)

    @bound
    def deserialize(self, blob: bytes) -> bool:
        fits = bytes(blob).startswith(self.MARK)
        if fits:
            self.data = bytes(blob)
        return fits


class IRuntimeConfig:
    def __init__(self, double: Any) -> None:
        self._strategies = double.ExecutionContextAllocationStrategy
        self.cache: IRuntimeCache | None = None
        self.strategy = self._strategies.STATIC
        self._specializations = double.DynamicShapesKernelSpecializationStrategy
        self._specialization = self._specializations.LAZY

    @property
    def dynamic_shapes_kernel_specialization_strategy(self) -> Any:
        return self._specialization

    @dynamic_shapes_kernel_specialization_strategy.setter
    def dynamic_shapes_kernel_specialization_strategy(self, strategy: Any) -> None:
        self._specialization = member_of(self._specializations, strategy)

    def set_execution_context_allocation_strategy(self, strategy: Any = None) -> None:
        self.strategy = self._strategies.STATIC if strategy is None else member_of(self._strategies, strategy)

    def create_runtime_cache(self) -> IRuntimeCache:
        return IRuntimeCache()

    def set_runtime_cache(self, cache: IRuntimeCache | None = None) -> bool:
        self.cache = cache
        return True


class EngineInspector:
    def __init__(self, nodes: list[str]) -> None:
        self._nodes = nodes

    def get_engine_information(self, format: Any) -> str:
        require(format.name == "JSON", "only JSON has the names of layers")
        return json.dumps({"Layers": [{"Name": f"{node}_{index}"} for index, node in enumerate(self._nodes)]})


class IExecutionContext:
    def __init__(self, engine: ICudaEngine, state: State, is_user_managed: bool) -> None:
        self._engine, self._state = engine, state
        self._profile: int | None = 0 if engine.num_optimization_profiles == 1 else None
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}
        self._workspace_bytes = 0 if is_user_managed else WORKSPACE_BYTES

    @bound
    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
        require(stream_handle != 0, "the default stream was given: TensorRT would synchronize the device")
        self._state.call("set_optimization_profile_async", profile_index)
        if self._fails("set_optimization_profile_async"):
            return False
        self._profile, self._shapes = profile_index, {}
        return 0 <= profile_index < self._engine.num_optimization_profiles

    @bound
    def set_device_memory(self, memory: int, size: int) -> None:
        require(memory % 256 == 0, "the workspace is not aligned to 256 bytes")
        require(self._profile is not None, "a workspace before a profile, which its size depends on")
        require(size >= WORKSPACE_BYTES, f"a workspace of {size} bytes, {WORKSPACE_BYTES} are needed")
        ctypes.memset(memory, 0xAB, size)  # so that memory which is not there is noticed
        self._workspace_bytes = size

    @bound
    def is_stream_capturable(self, stream: int) -> bool:
        require(self._state.is_rtx, "only TensorRT for RTX tells")
        return stream != 0

    @bound
    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        require(self._profile is not None, "a shape before a profile was chosen")
        assert self._profile is not None
        if self._fails("set_input_shape") or name not in self._engine._tensors:
            return False
        smallest, _, largest = self._engine.get_tensor_profile_shape(name, self._profile)
        if len(shape) != len(smallest) or not all(
            low <= size <= high for low, size, high in zip(smallest, shape, largest, strict=True)
        ):
            return False
        self._shapes[name] = tuple(shape)
        return True

    def infer_shapes(self) -> list[str]:
        inputs = [one.name for one in self._engine._tensors.values() if one.is_input]
        return [name for name in inputs if name not in self._shapes and -1 in self._engine.get_tensor_shape(name)]

    @bound
    def get_tensor_shape(self, name: str) -> Any:
        sizes: dict[str, int] = {}
        for input_name, shape in self._shapes.items():
            axes = zip(self._engine._tensors[input_name].shape, shape, strict=True)
            sizes.update({axis: size for axis, size in axes if isinstance(axis, str)})
        shape = self._engine._tensors[name].shape
        return _dims(sizes.get(size, -1) if isinstance(size, str) else size for size in shape)

    @bound
    def set_tensor_address(self, name: str, memory: int) -> bool:
        if self._fails("set_tensor_address") or name not in self._engine._tensors:
            return False
        require(memory != 0, f"{name}: a null address")
        self._addresses[name] = memory
        return True

    @bound
    def execute_async_v3(self, stream_handle: int) -> bool:
        require(stream_handle != 0, "the default stream was given: TensorRT would synchronize the device")
        require(self._workspace_bytes > 0, "no workspace, which this context does not have of its own")
        require(not self.infer_shapes(), f"no shapes of {self.infer_shapes()}")
        self._state.call("execute_async_v3")
        if self._fails("execute_async_v3"):
            return False
        arrays = {name: self._array(name) for name in self._engine._tensors}
        inputs = {name: arrays[name].copy() for name, one in self._engine._tensors.items() if one.is_input}
        outputs = [name for name, one in self._engine._tensors.items() if not one.is_input]
        for name, result in zip(outputs, self._engine._session.run(outputs, inputs), strict=True):
            arrays[name][...] = result
        return True

    def _array(self, name: str) -> npt.NDArray[Any]:
        """Return the memory at a tensor's address."""
        require(name in self._addresses, f"{name} has no address")
        shape, dtype = self.get_tensor_shape(name), np.dtype(self._engine._tensors[name].dtype)
        size = int(np.prod(shape)) * dtype.itemsize
        memory = (ctypes.c_byte * size).from_address(self._addresses[name])
        return np.frombuffer(memoryview(memory), dtype).reshape(shape)

    def _fails(self, name: str) -> bool:
        return self._state.fails(name, self._engine._logger)


def _dims(sizes: Iterable[int]) -> Any:
    return real_tensorrt().Dims(tuple(sizes))


def running_names(double: Any, state: State) -> Mapping[str, Any]:
    """Return the classes of this half, for one double."""

    class Runtime:
        __slots__ = ("_is_host_code_allowed", "_logger")

        def __init__(self, logger: Any) -> None:
            if not isinstance(logger, double.ILogger):
                raise TypeError(f"__init__(): incompatible constructor arguments: logger={logger!r}")
            self._logger, self._is_host_code_allowed = logger, False

        @property
        def engine_host_code_allowed(self) -> bool:
            return self._is_host_code_allowed

        @engine_host_code_allowed.setter
        def engine_host_code_allowed(self, allowed: bool) -> None:
            self._is_host_code_allowed = bool(allowed)

        @bound
        def deserialize_cuda_engine(self, serialized_engine: bytes) -> ICudaEngine | None:
            state.call("deserialize_cuda_engine")
            if state.fails("deserialize_cuda_engine", self._logger):
                return None
            plan = read_plan(bytes(serialized_engine))
            reason = "not a plan" if plan is None else _refusal(plan, state, self.engine_host_code_allowed)
            if plan is None or reason:
                self._logger.log(double.ILogger.Severity.ERROR, f"deserialization failed: {reason}")
                return None
            return ICudaEngine(double, state, plan, self._logger)

    return {
        "Runtime": Runtime,
        "ICudaEngine": ICudaEngine,
        "IExecutionContext": IExecutionContext,
        "EngineInspector": EngineInspector,
        **({"IRuntimeConfig": IRuntimeConfig, "IRuntimeCache": IRuntimeCache} if state.is_rtx else {}),
    }


def _refusal(plan: dict[str, Any], state: State, host_code_allowed: bool) -> str:
    """Return why a plan cannot be loaded here; "" if it can."""
    compatible = "VERSION_COMPATIBLE" in plan["flags"]
    if compatible and not host_code_allowed:
        return "it has host code, which is not allowed"
    built = tuple(int(part) for part in plan["version"].split("."))
    newer_of_major = built[0] == state.numbers[0] and built <= state.numbers
    if built != state.numbers and not (compatible and newer_of_major):
        return f"version {plan['version']}"
    return "" if plan["gpu"] == state.gpu or plan["level"] != "NONE" else f"GPU {plan['gpu']}"
