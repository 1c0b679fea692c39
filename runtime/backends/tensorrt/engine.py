"""TensorRT: plans that were built for this GPU, run on torch's memory.

The shapes of a run lie within one of the plan's profiles; each profile in use has an execution context. Contexts have
no workspace of their own: they run one after another on one stream and share one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from weakref import WeakSet

import torch
from torch import Tensor

from runtime.backends.base import BindableEngine, EngineReport
from runtime.backends.cuda.device import Gpu, current_gpu
from runtime.backends.cuda.stream import CaptureMode, Stream
from runtime.backends.cuda.workspace import Workspace, aligned
from runtime.backends.tensorrt.api import PRODUCT_NAMES, TensorRtApi, is_compatible
from runtime.backends.tensorrt.rtx import RuntimeCache, can_be_captured, check_supported, open_runtime_cache
from runtime.bundle import EngineFiles, PlanRecord
from runtime.bundle.trust import check_trusted
from runtime.errors import BackendError

if TYPE_CHECKING:
    import tensorrt

_DTYPES = {
    "FLOAT": torch.float32,
    "HALF": torch.float16,
    "BF16": torch.bfloat16,
    "INT8": torch.int8,
    "INT32": torch.int32,
    "INT64": torch.int64,
    "UINT8": torch.uint8,
    "BOOL": torch.bool,
}
"""Torch's dtypes by TensorRT's names: the numbers behind the names differ between its versions."""


class TrtBackend:
    """Executes a bundle's TensorRT plans.

    Args:
        api: the TensorRT that executes them.
        device: the GPU; by default the current one.

    Raises:
        BackendError: torch has no GPU, or it is none that this TensorRT runs on.
    """

    def __init__(self, api: TensorRtApi, device: torch.device | None = None) -> None:
        self._api = api
        self._device = device or current_gpu()
        self._gpu = Gpu.of(self._device)
        check_supported(api, self._gpu)
        self._stream = Stream(self._device)
        self._workspace = Workspace(self._device)
        self._runtime = self._api.require(self._api.module.Runtime(self._api.logger), "starting its runtime")

    @property
    def name(self) -> str:
        return f"{self._api.product} {self._api.version} {self._gpu.name}"

    @property
    def device(self) -> torch.device:
        return self._device

    @property
    def needs_warm_up(self) -> bool:
        return True

    def open(self, files: EngineFiles, concurrency: int = 1) -> TrtEngine:  # noqa: ARG002  # runs follow one another
        if files.plan is None:
            raise BackendError(
                f"{files.graph}: no TensorRT plan was built of it: patchcaption build-plans {files.graph.parent}"
            )
        record, plan = files.plan
        self._check_fits(record, plan)
        contents = files.read_plan()
        sha256 = hashlib.sha256(contents).hexdigest()
        check_trusted(plan, sha256)
        if record.version_compatible:  # such plans carry code of their own
            self._runtime.engine_host_code_allowed = True
        with self._stream.active():  # in whatever thread: the engine is of the GPU that is current now
            engine = self._api.require(self._runtime.deserialize_cuda_engine(contents), f"{plan}: loading it")
            cache = open_runtime_cache(self._api, engine, sha256, self._gpu)
            return TrtEngine(self._api, engine, plan, self._device, self._stream, self._workspace, cache)

    def _check_fits(self, record: PlanRecord, plan: Path) -> None:
        """Raise if a plan was built for another TensorRT or GPU: loading it would fail without saying which."""
        if record.product != self._api.product:
            raise BackendError(
                f"{plan}: built by {PRODUCT_NAMES[record.product]}; use the backend {record.product!r}, or build the "
                "bundle again for this one"
            )
        if not is_compatible(record.version, self._api.version, record.version_compatible):
            raise BackendError(
                f"{plan}: built by {PRODUCT_NAMES[record.product]} {record.version}, here is {self._api.version}; "
                "build the bundle again here"
            )
        fits = {
            "same": record.gpu == self._gpu.name,
            "same-capability": self._gpu.compute_capability in record.compute_capabilities,
            "ampere+": int(self._gpu.compute_capability.split(".")[0]) >= 8,
        }
        if not fits[record.hardware]:
            raise BackendError(
                f"{plan}: built for {record.gpu or 'GPUs'} ({', '.join(record.compute_capabilities)}), here is "
                f"{self._gpu.name} ({self._gpu.compute_capability}); build the bundle again here"
            )


@dataclass(frozen=True, eq=False)
class _PlanIo:
    """A plan's inputs and outputs, for its engine and its contexts.

    Attributes:
        plan: the plan's file, for messages.
        dtypes: of every input and output.
    """

    api: TensorRtApi
    plan: Path
    device: torch.device
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    dtypes: Mapping[str, torch.dtype]

    @classmethod
    def of(cls, api: TensorRtApi, engine: tensorrt.ICudaEngine, plan: Path, device: torch.device) -> _PlanIo:
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        is_input = {name: engine.get_tensor_mode(name) == api.module.TensorIOMode.INPUT for name in names}
        return cls(
            api,
            plan,
            device,
            inputs=tuple(name for name in names if is_input[name]),
            outputs=tuple(name for name in names if not is_input[name]),
            dtypes={name: _DTYPES[engine.get_tensor_dtype(name).name] for name in names},
        )


class TrtEngine:
    """A plan, deserialized.

    Args:
        runtime_cache: the code that the GPU compiles of it at first use; None where it was compiled when it was built.
    """

    def __init__(
        self,
        api: TensorRtApi,
        engine: tensorrt.ICudaEngine,
        plan: Path,
        device: torch.device,
        stream: Stream,
        workspace: Workspace,
        runtime_cache: RuntimeCache | None = None,
    ) -> None:
        self.stream = stream
        self._runtime_cache = runtime_cache
        self._api, self._plan, self._device, self._workspace = api, plan, device, workspace
        self._engine: tensorrt.ICudaEngine | None = engine
        self._io = _PlanIo.of(api, engine, plan, device)
        self._contexts: dict[int, _Context] = {}  # of runs in any memory, by profile
        self._bound: WeakSet[_Context] = WeakSet()

    @property
    def bindable(self) -> BindableEngine:
        return self

    def report(self) -> EngineReport:
        layers = self._layers()
        return EngineReport(f"{self._api.name} ({len(layers)} layers)", fused_layers=layers)

    def dtype(self, name: str) -> torch.dtype:
        return self._io.dtypes[name]

    def run(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        with self.stream.exclusive:  # a context has one set of shapes and addresses
            return self._run(inputs)

    def _run(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        profile = self._profile_for(inputs)
        is_first = profile not in self._contexts
        if is_first:
            self._contexts[profile] = self._new_context(profile, fixed_shapes=False)
        context = self._contexts[profile]
        shapes = context.infer_output_shapes(inputs)
        # Outside the stream, where they are read.
        inputs = {name: aligned(tensor) for name, tensor in inputs.items()}
        outputs = {
            name: torch.empty(shape, dtype=self._io.dtypes[name], device=self._device) for name, shape in shapes.items()
        }
        with self.stream.active():
            context.set_addresses({**inputs, **outputs})
            context.run()
        if is_first and self._runtime_cache is not None:
            self._runtime_cache.save()
        return outputs

    def bind(self, inputs: Mapping[str, Tensor], outputs: Mapping[str, Tensor]) -> TrtBoundRun:
        with self.stream.exclusive:
            context = self._new_context(self._profile_for(inputs), fixed_shapes=True)  # of its own, as a graph needs it
            self._bound.add(context)
            shapes = context.infer_output_shapes(inputs)
            for name, shape in shapes.items():
                if name not in outputs or tuple(outputs[name].shape) != shape:
                    got = tuple(outputs[name].shape) if name in outputs else "nothing"
                    raise BackendError(f"{self._plan}: {name}: expected memory for {shape}, got {got}")
            tensors = {**inputs, **outputs}
            context.set_addresses(tensors)
            return TrtBoundRun(context, tensors, self._runtime_cache)

    def close(self) -> None:
        with self.stream.exclusive:
            if self._runtime_cache is not None:
                self._runtime_cache.save()
            self.stream.synchronize()  # a context must not go while it runs
            for context in (*self._contexts.values(), *self._bound):
                context.close()
            self._contexts.clear()
            self._engine = None

    def _layers(self) -> tuple[str, ...]:
        """Return the names of the plan's layers, which show what TensorRT has fused."""
        inspector = self._api.require(self._require_open().create_engine_inspector(), f"{self._plan}: inspecting it")
        information = json.loads(inspector.get_engine_information(self._api.module.LayerInformationFormat.JSON))
        return tuple(layer if isinstance(layer, str) else layer["Name"] for layer in information["Layers"])

    def _profile_for(self, inputs: Mapping[str, Tensor]) -> int:
        """Return the first profile that has these shapes.

        Raises:
            BackendError: none has them, or the names are wrong.
        """
        engine = self._require_open()
        if set(inputs) != set(self._io.inputs):
            raise BackendError(f"{self._plan}: expected {sorted(self._io.inputs)}, got {sorted(inputs)}")
        for profile in range(engine.num_optimization_profiles):
            if all(_fits(engine, profile, name, tensor.shape) for name, tensor in inputs.items()):
                return profile
        shapes = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in inputs.items())
        raise BackendError(
            f"{self._plan}: built for other shapes than {shapes}; build the bundle again with a larger --max-images or "
            "--max-regions"
        )

    def _new_context(self, profile: int, fixed_shapes: bool) -> _Context:
        """Return a context for one profile, and for one set of shapes if they are fixed."""
        engine = self._require_open()
        strategy = self._api.module.ExecutionContextAllocationStrategy.USER_MANAGED
        config = strategy if self._runtime_cache is None else self._runtime_cache.config(fixed_shapes)
        with self.stream.active():
            context = self._api.require(
                engine.create_execution_context(config), f"{self._plan}: making an execution context"
            )
            size_bytes = engine.get_device_memory_size_for_profile_v2(profile)
            is_set = context.set_optimization_profile_async(profile, self.stream.handle)
            self._api.require(is_set, f"{self._plan}: choosing profile {profile}")
            memory, address = self._workspace.reserve(size_bytes)
            context.set_device_memory(address, size_bytes)
        return _Context(self._io, context, self.stream, memory)

    def _require_open(self) -> tensorrt.ICudaEngine:
        if self._engine is None:
            raise BackendError(f"{self._plan}: it was closed; load the bundle again")
        return self._engine


class _Context:
    """One execution context with its shapes and addresses. Holds its workspace for as long as it lives."""

    def __init__(self, io: _PlanIo, context: tensorrt.IExecutionContext, stream: Stream, workspace: Tensor) -> None:
        self._io, self._stream = io, stream
        self._context: tensorrt.IExecutionContext | None = context
        self._workspace: Tensor | None = workspace

    @property
    def can_be_captured(self) -> bool:
        """Whether its runs can become part of a CUDA graph now."""
        return can_be_captured(self._io.api, self._require_open(), self._stream.handle)

    def infer_output_shapes(self, inputs: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
        """Set the shapes of the inputs; return those that the outputs then have."""
        context = self._require_open()
        for name, tensor in inputs.items():
            is_set = context.set_input_shape(name, tuple(tensor.shape))
            self._io.api.require(is_set, f"{self._io.plan}: {name} of shape {tuple(tensor.shape)}")
        missing = context.infer_shapes()
        if missing:
            raise BackendError(f"{self._io.plan}: shapes of {', '.join(missing)} are not known")
        return {name: tuple(context.get_tensor_shape(name)) for name in self._io.outputs}

    def set_addresses(self, tensors: Mapping[str, Tensor]) -> None:
        """Make later runs read and write these tensors."""
        io, context = self._io, self._require_open()
        for name, tensor in tensors.items():
            dtype = io.dtypes[name]
            if tensor.dtype != dtype or tensor.device != io.device or not tensor.is_contiguous():
                raise BackendError(
                    f"{io.plan}: {name}: expected contiguous {dtype} on {io.device}, got {tensor.dtype} on "
                    f"{tensor.device}"
                )
            io.api.require(context.set_tensor_address(name, tensor.data_ptr()), f"{io.plan}: {name} at its address")

    def run(self) -> None:
        """Enqueue one execution."""
        is_enqueued = self._require_open().execute_async_v3(self._stream.handle)
        self._io.api.require(is_enqueued, f"{self._io.plan}: running it")

    def close(self) -> None:
        """Release the context and its workspace, whoever still refers to this object."""
        self._context = self._workspace = None

    def _require_open(self) -> tensorrt.IExecutionContext:
        if self._context is None:
            raise BackendError(f"{self._io.plan}: it was closed; load the bundle again")
        return self._context


class TrtBoundRun:
    """An execution context over fixed memory, which it keeps."""

    def __init__(self, context: _Context, tensors: Mapping[str, Tensor], runtime_cache: RuntimeCache | None) -> None:
        self._context, self._tensors = context, tensors
        self._unsaved = runtime_cache  # of what the first run compiles

    @property
    def capture_mode(self) -> CaptureMode:
        return "around" if self._context.can_be_captured else "none"

    def run(self) -> None:
        self._context.run()
        if self._unsaved is not None:
            self._unsaved.save()
            self._unsaved = None


def _fits(engine: tensorrt.ICudaEngine, profile: int, name: str, shape: torch.Size) -> bool:
    smallest, _, largest = engine.get_tensor_profile_shape(name, profile)
    return len(smallest) == len(shape) and all(
        low <= size <= high for low, size, high in zip(smallest, shape, largest, strict=True)
    )
