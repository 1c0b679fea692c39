"""OpenVINO on the CPU, in float32 or bfloat16."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from queue import SimpleQueue
from threading import Lock
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from runtime.backends.base import BindableEngine, Engine, EngineReport
from runtime.backends.imports import import_openvino
from runtime.bundle import EngineFiles
from runtime.bundle.contract import DeclaredTensor
from runtime.errors import BackendError, BundleError
from runtime.options import Precision
from runtime.system.heap import return_free_memory
from runtime.system.machine import threads_per_caller, usable_cores

if TYPE_CHECKING:
    from runtime.backends.native_steps import NativeStepEngine
    from runtime.backends.openvino_nodes import NativeNodes

_HINTS = {"fp32": "f32", "bf16": "bf16"}
_WEIGHTS_IN_8_BITS = {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "64"}
"""Settings of graphs whose weights alone are in 8 bits. Activations are rounded to 8 bits too, by a scale for as many
as share one with a weight, so that the processor multiplies 8 bits; in bfloat16 such graphs are no faster."""
_WITH_NATIVE_NODES = {"ENABLE_CPU_PINNING": False}
"""Settings of graphs with nodes that start threads, which a pinned thread would keep on its own core."""
_DTYPES = {
    **{"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16, "boolean": torch.bool},
    **{"u8": torch.uint8, "i8": torch.int8, "i32": torch.int32, "i64": torch.int64},
}
"""Torch's dtypes by OpenVINO's names."""

_core: Any = None
_making_core = Lock()
_first_run = Lock()
"""Held by the first run of each engine."""


class OpenVinoBackend:
    """Executes the same ONNX graphs with OpenVINO on the CPU.

    Args:
        threads: how many threads an engine may use; None leaves it to OpenVINO, which takes every physical core.
        precision: what it computes in what its graphs leave in float32: "fp32", or "bf16" where the CPU multiplies it
            (AVX-512 BF16, AMX).

    Raises:
        BackendError: OpenVINO is not installed, or the CPU does not have the precision.
    """

    def __init__(self, threads: int | None = None, precision: Precision = "fp32") -> None:
        try:
            openvino = import_openvino()
        except ImportError as error:
            raise BackendError(f"OpenVINO cannot be imported ({error}): pip install 'patchcaption[openvino]'") from None
        self._core = _core_of_this_process(openvino)
        self._precision = precision
        self._version = openvino.__version__.split("-")[0]
        if precision not in _HINTS:
            raise BackendError(f"precision {precision!r}: with OpenVINO expected one of {', '.join(_HINTS)}")
        if precision == "bf16" and "BF16" not in self._core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            raise BackendError("precision 'bf16': this CPU does not multiply bfloat16; use fp32")
        self._settings: dict[str, Any] = {
            "INFERENCE_PRECISION_HINT": _HINTS[precision],
            "PERFORMANCE_HINT": "LATENCY",
        }
        self._threads = threads
        if threads is not None:
            self._settings["INFERENCE_NUM_THREADS"] = threads

    @property
    def name(self) -> str:
        return f"openvino {self._version} CPU {self._precision}"

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    @property
    def needs_warm_up(self) -> bool:
        return False

    def open(self, files: EngineFiles, concurrency: int = 1) -> Engine:
        path = files.graph
        settings = self._settings if concurrency == 1 else {**self._settings, "NUM_STREAMS": str(concurrency)}
        if files.precision == "int8_weights":
            settings = {**settings, **_WEIGHTS_IN_8_BITS}
        try:
            with files.opened_by_path():
                graph = self._core.read_model(str(path))
                if files.precision == "int8_weights" and (step := self._native_step(graph, files, concurrency)):
                    del graph
                    return_free_memory()
                    return step
                nodes = self._use_native_kernels(graph, concurrency)
                if nodes:
                    settings = {**settings, **_WITH_NATIVE_NODES}
                model = self._core.compile_model(graph, "CPU", settings)
        except BundleError:
            raise
        except Exception as error:  # OpenVINO raises RuntimeError and types of its own
            raise BackendError(f"{path}: OpenVINO cannot load it: {_reason(error)}") from error
        del graph
        return_free_memory()
        return OpenVinoEngine(model, files, concurrency, nodes)

    def _native_step(self, graph: Any, files: EngineFiles, concurrency: int) -> NativeStepEngine | None:
        """Return the engine of a decoder's step that the native kernels compute; None if they cannot."""
        if self._precision != "bf16":
            return None
        from runtime.backends.native_steps import native_step

        step = native_step(graph, files, self._native_threads(concurrency))
        if step is not None and files.contract is not None:
            files.contract.check_declared(files.graph, _declared(graph.inputs), _declared(graph.outputs))
        return step

    def _native_threads(self, concurrency: int) -> int:
        """Return the most threads that one of several callers' native kernels use."""
        return threads_per_caller(concurrency, self._threads) or usable_cores()

    def _use_native_kernels(self, graph: Any, concurrency: int) -> NativeNodes | None:
        """Return the nodes of a graph that the native kernels execute, None if there are none."""
        if self._precision != "bf16":
            return None
        from runtime.backends.openvino_nodes import use_native_kernels

        return use_native_kernels(graph, self._native_threads(concurrency)) or None


def _core_of_this_process(openvino: Any) -> Any:
    """Return OpenVINO's core, which is made once and stays to the end of the process.

    Its CPU plugin gives the thread that it is loaded in a stack for signal handlers. Destroyed, it unmaps that stack,
    in whatever thread, and puts back the one before, be that unmapped: the next signal would end the process.
    """
    global _core
    with _making_core:
        if _core is None:
            _core = openvino.Core()
            _core.set_property({"ENABLE_MMAP": False})  # a mapped file that gets shorter would end the process
        return _core


class OpenVinoEngine:
    """A compiled graph and its infer requests, each of which serves one caller at a time."""

    bindable: BindableEngine | None = None

    def __init__(self, model: Any, files: EngineFiles, concurrency: int, nodes: NativeNodes | None) -> None:
        self._path, self._contract = files.graph, files.contract
        if self._contract is not None:
            self._contract.check_declared(self._path, _declared(model.inputs), _declared(model.outputs))
        self._concurrency, self._has_run = concurrency, False
        self._requests: SimpleQueue[Any] = SimpleQueue()  # the free ones; None once the engine is closed
        for _ in range(concurrency):
            self._requests.put(model.create_infer_request())
        self._nodes = nodes
        if nodes is not None:
            nodes.complete()
        devices, precision = model.get_property("EXECUTION_DEVICES"), model.get_property("INFERENCE_PRECISION_HINT")
        self._provider = f"{', '.join(devices)} in {precision.get_type_name()}"
        if nodes is not None:
            from runtime.backends.openvino_nodes import names_of

            self._provider += f", {' and '.join(names_of(nodes))} by the native kernels"
        self._outputs = [output.get_any_name() for output in model.outputs]

    def report(self) -> EngineReport:
        return EngineReport(self._provider)

    def run(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        feeds = {name: tensor.numpy() for name, tensor in inputs.items()}
        request = self._requests.get()
        try:
            # The bindings make static objects in the first run: one thread holds the object's guard and waits for
            # Python's lock, another the reverse.
            with nullcontext() if self._has_run else _first_run:
                results = self._infer(request, feeds)
            self._has_run = True
        finally:
            self._requests.put(request)
        outputs = {name: torch.from_numpy(results[name]) for name in self._outputs}
        if self._contract is not None:
            self._contract.check_outputs(self._path, inputs, outputs)
        return outputs

    def _infer(self, request: Any, feeds: Mapping[str, Any]) -> Any:
        if request is None:
            raise BackendError(f"{self._path}: it was closed; load the bundle again")
        nodes = self._nodes
        failures = 0 if nodes is None else nodes.failures
        try:
            results = request.infer(feeds, share_inputs=True, share_outputs=False)
        except Exception as error:
            raise BackendError(f"{self._path}: OpenVINO cannot run it: {_reason(error)}") from error
        if nodes is not None and nodes.failures > failures:
            failure = nodes.last_failure
            if not isinstance(failure, (Exception, type(None))):  # a signal's
                raise failure
            raise BackendError(f"{self._path}: the native kernels failed: {failure}") from failure
        return results

    def close(self) -> None:
        for _ in range(self._concurrency):
            if self._requests.get() is None:  # already closed
                break
        self._nodes = None
        self._requests.put(None)


def _declared(ports: Iterable[Any]) -> list[DeclaredTensor]:
    """Return what the inputs or outputs of a compiled model declare."""
    return [
        DeclaredTensor(
            port.get_any_name(),
            _DTYPES.get(port.get_element_type().get_type_name()),
            tuple(size.get_length() if size.is_static else None for size in port.get_partial_shape()),
        )
        for port in ports
    ]


def _reason(error: Exception) -> str:
    """Return what went wrong: OpenVINO's messages begin with the lines of its source that raised them."""
    lines = [line.strip() for line in str(error).splitlines()]
    reasons = [line for line in lines if line and not line.startswith(("Exception from ", "Check '"))]
    return " ".join(reasons) or type(error).__name__
