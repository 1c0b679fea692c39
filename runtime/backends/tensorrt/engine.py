"""TensorRT: plans that were built for this GPU, run on torch's memory.

Shapes of a plan lie within one of its profiles; each profile that is used has an execution context of its own. Contexts
have no scratch memory of their own: they run one after another on one stream and share one piece of it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from runtime.backends.cuda.device import Gpu, current_gpu
from runtime.backends.cuda.stream import Capture, Stream
from runtime.backends.cuda.workspace import Scratch
from runtime.backends.tensorrt.api import TensorRt, may_load, open_tensorrt
from runtime.bundle import Bundle, PlanRecord
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
"""By TensorRT's names: the numbers behind them differ between its versions."""


class TrtBackend:
    """Executes a bundle's TensorRT plans.

    Args:
        bundle: built with --backend tensorrt.
        device: the GPU; by default the current one.

    Raises:
        BackendError: TensorRT is not there, or torch has no GPU.
    """

    def __init__(self, bundle: Bundle, device: torch.device | None = None) -> None:
        self._bundle = bundle
        self._trt = open_tensorrt()
        import tensorrt

        self._device = device or current_gpu()
        self._gpu = Gpu.of(self._device)
        self._stream = Stream(self._device)
        self._scratch = Scratch(self._device)
        self._runtime = self._trt.checked(tensorrt.Runtime(self._trt.logger), "starting its runtime")

    @property
    def name(self) -> str:
        return f"tensorrt {self._trt.version} {self._gpu.name}"

    @property
    def device(self) -> torch.device:
        return self._device

    def open(self, path: Path, callers: int = 1) -> TrtEngine:  # noqa: ARG002
        record = next((plan for plan in self._bundle.manifest.plans if plan.graph == path.name), None)
        if record is None:
            raise BackendError(
                f"{path}: no TensorRT plan was built of it: python export/build_plans.py {self._bundle.folder}"
            )
        self._check(record)
        plan = self._bundle.path(record.file)
        contents = plan.read_bytes()
        check_trusted(plan, hashlib.sha256(contents).hexdigest())
        if record.version_compatible:  # such plans carry code of their own
            self._runtime.engine_host_code_allowed = True
        engine = self._trt.checked(self._runtime.deserialize_cuda_engine(contents), f"{plan}: loading it")
        return TrtEngine(self._trt, engine, plan, self._device, self._stream, self._scratch)

    def _check(self, record: PlanRecord) -> None:
        """Raises if a plan was built for another TensorRT or GPU: loading it would fail without saying which."""
        plan = self._bundle.path(record.file)
        if not may_load(record.tensorrt, self._trt.version, record.version_compatible):
            raise BackendError(
                f"{plan}: built by TensorRT {record.tensorrt}, here is {self._trt.version}; build the bundle again here"
            )
        fits = {
            "same": record.gpu == self._gpu.name,
            "same-capability": record.compute_capability == self._gpu.compute_capability,
            "ampere+": int(self._gpu.compute_capability.split(".")[0]) >= 8,
        }
        if not fits[record.hardware]:
            raise BackendError(
                f"{plan}: built for {record.gpu} ({record.compute_capability}), here is {self._gpu.name} "
                f"({self._gpu.compute_capability}); build the bundle again here"
            )


class TrtEngine:
    """A plan, deserialized."""

    def __init__(
        self,
        trt: TensorRt,
        engine: tensorrt.ICudaEngine,
        plan: Path,
        device: torch.device,
        stream: Stream,
        scratch: Scratch,
    ) -> None:
        import tensorrt

        self.stream = stream
        self._trt, self._plan, self._device, self._scratch = trt, plan, device, scratch
        self._engine: tensorrt.ICudaEngine | None = engine
        names = [engine.get_tensor_name(number) for number in range(engine.num_io_tensors)]
        is_input = {name: engine.get_tensor_mode(name) == tensorrt.TensorIOMode.INPUT for name in names}
        self._inputs = [name for name in names if is_input[name]]
        self._outputs = [name for name in names if not is_input[name]]
        self._dtypes = {name: _DTYPES[engine.get_tensor_dtype(name).name] for name in names}
        self._contexts: dict[int, _Context] = {}
        self._running = Lock()

    @property
    def runs_on(self) -> str:
        return f"TensorRT {self._trt.version} ({len(self.layers())} layers)"

    def dtype(self, name: str) -> torch.dtype:
        return self._dtypes[name]

    def run(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        with self._running:  # a context has one set of addresses
            return self._run(inputs)

    def _run(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        profile = self._profile(inputs)
        if profile not in self._contexts:
            self._contexts[profile] = self._new_context(profile)
        context = self._contexts[profile]
        shapes = context.shapes_of_outputs(inputs)
        # On torch's stream, so that torch gives none of it to others before the work lined up here is done.
        outputs = {
            name: torch.empty(shape, dtype=self._dtypes[name], device=self._device) for name, shape in shapes.items()
        }
        with self.stream.active():
            context.tie({**inputs, **outputs})
            context.run()
        return outputs

    def bind(self, inputs: Mapping[str, Tensor], outputs: Mapping[str, Tensor]) -> TrtBound:
        context = self._new_context(self._profile(inputs))  # of its own: a captured graph keeps it as it is
        shapes = context.shapes_of_outputs(inputs)
        for name, shape in shapes.items():
            if name not in outputs or tuple(outputs[name].shape) != shape:
                got = tuple(outputs[name].shape) if name in outputs else "nothing"
                raise BackendError(f"{self._plan}: {name}: expected memory for {shape}, got {got}")
        context.tie({**inputs, **outputs})
        return TrtBound(context)

    def layers(self) -> list[str]:
        """The names of the plan's layers, which show what TensorRT has fused."""
        import tensorrt

        inspector = self._trt.checked(self._opened().create_engine_inspector(), f"{self._plan}: inspecting it")
        said = json.loads(inspector.get_engine_information(tensorrt.LayerInformationFormat.JSON))
        return [layer if isinstance(layer, str) else layer["Name"] for layer in said["Layers"]]

    def close(self) -> None:
        self._contexts.clear()
        self._engine = None

    def _profile(self, inputs: Mapping[str, Tensor]) -> int:
        """The first profile that has these shapes.

        Raises:
            BackendError: none has; or names, dtypes or places are wrong.
        """
        engine = self._opened()
        if set(inputs) != set(self._inputs):
            raise BackendError(f"{self._plan}: expected {sorted(self._inputs)}, got {sorted(inputs)}")
        for number in range(engine.num_optimization_profiles):
            if all(_fits(engine, number, name, tensor.shape) for name, tensor in inputs.items()):
                return number
        shapes = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in inputs.items())
        raise BackendError(
            f"{self._plan}: built for other shapes than {shapes}; build the bundle again with a larger --max-images or "
            "--max-regions"
        )

    def _new_context(self, profile: int) -> _Context:
        import tensorrt

        strategy = tensorrt.ExecutionContextAllocationStrategy.USER_MANAGED
        engine = self._opened()
        made = engine.create_execution_context(strategy)
        context = self._trt.checked(made, f"{self._plan}: making an execution context")
        size = engine.get_device_memory_size_for_profile_v2(profile)
        with self.stream.active():
            chosen = context.set_optimization_profile_async(profile, self.stream.handle)
        self._trt.checked(chosen, f"{self._plan}: choosing profile {profile}")
        memory, address = self._scratch.of(size)
        context.set_device_memory(address, size)
        return _Context(self, context, memory)

    def _opened(self) -> tensorrt.ICudaEngine:
        if self._engine is None:
            raise BackendError(f"{self._plan}: it was closed; load the bundle again")
        return self._engine


class _Context:
    """One execution context: shapes and addresses, and its scratch memory held for as long as it is."""

    def __init__(self, engine: TrtEngine, context: tensorrt.IExecutionContext, scratch: Tensor) -> None:
        self._of, self._context, self._scratch = engine, context, scratch
        self._tied: dict[str, Tensor] = {}

    def shapes_of_outputs(self, inputs: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
        """Sets the shapes of the inputs; returns those that the outputs then have."""
        engine = self._of
        for name, tensor in inputs.items():
            is_set = self._context.set_input_shape(name, tuple(tensor.shape))
            engine._trt.checked(is_set, f"{engine._plan}: {name} of shape {tuple(tensor.shape)}")
        missing = self._context.infer_shapes()
        if missing:
            raise BackendError(f"{engine._plan}: shapes of {', '.join(missing)} are not known")
        return {name: tuple(self._context.get_tensor_shape(name)) for name in engine._outputs}

    def tie(self, tensors: Mapping[str, Tensor]) -> None:
        engine = self._of
        for name, tensor in tensors.items():
            dtype = engine._dtypes[name]
            if tensor.dtype != dtype or tensor.device != engine._device or not tensor.is_contiguous():
                raise BackendError(
                    f"{engine._plan}: {name}: expected contiguous {dtype} on {engine._device}, got {tensor.dtype} on "
                    f"{tensor.device}"
                )
            is_set = self._context.set_tensor_address(name, tensor.data_ptr())
            engine._trt.checked(is_set, f"{engine._plan}: {name} at its address")
        self._tied = dict(tensors)

    def run(self) -> None:
        engine = self._of
        is_lined_up = self._context.execute_async_v3(engine.stream.handle)
        engine._trt.checked(is_lined_up, f"{engine._plan}: running it")


def _fits(engine: tensorrt.ICudaEngine, profile: int, name: str, shape: torch.Size) -> bool:
    least, _, most = engine.get_tensor_profile_shape(name, profile)
    return len(least) == len(shape) and all(
        low <= size <= high for low, size, high in zip(least, shape, most, strict=True)
    )


class TrtBound:
    """A context over fixed memory."""

    capture: Capture = "around"

    def __init__(self, context: _Context) -> None:
        self._context = context

    def run(self) -> None:
        self._context.run()
