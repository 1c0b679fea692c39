"""ONNX Runtime on its CUDA and TensorRT providers, reading and writing torch's memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from runtime.backends.base import BindableEngine, EngineReport, first_line
from runtime.backends.cuda.device import current_gpu
from runtime.backends.cuda.stream import CaptureMode, Stream
from runtime.backends.cuda.workspace import aligned
from runtime.backends.imports import import_onnxruntime
from runtime.backends.onnxruntime_io import DTYPES, declared_tensors
from runtime.bundle import EngineFiles, GraphPrecision
from runtime.errors import BackendError, BundleError

CUDA, TENSORRT, CPU = "CUDAExecutionProvider", "TensorrtExecutionProvider", "CPUExecutionProvider"

_WITHOUT_GRAPH = "-1"
"""The graph id with which ONNX Runtime neither captures nor replays."""

_HALF_PRECISIONS: dict[GraphPrecision, tuple[str, ...]] = {
    "fp32": (),
    "fp16": ("fp16",),
    "bf16": ("fp16", "bf16"),  # the vocabulary product is fp16
    "int8": ("fp16", "int8"),
    "fp8": (),
}


class OrtGpuBackend:
    """Executes ONNX graphs with ONNX Runtime on a GPU; tensors never leave it.

    Args:
        provider: `CUDA` or `TENSORRT`; the latter leaves what it cannot execute to CUDA.
        device: the GPU; by default the current one.
        engine_cache: where the TensorRT provider keeps the engines it builds; by default it builds them at each start.
        precision: of the graphs; the TensorRT provider must be told which reduced precisions it may compute in.

    Raises:
        BackendError: ONNX Runtime or torch has no GPU here.
    """

    def __init__(
        self,
        provider: str = CUDA,
        device: torch.device | None = None,
        engine_cache: Path | None = None,
        precision: GraphPrecision = "fp32",
    ) -> None:
        try:
            onnxruntime = import_onnxruntime()
        except ImportError as error:
            raise BackendError(
                f"ONNX Runtime cannot be imported ({error}): pip install 'patchcaption[gpu]'; the cpu wheel shares its "
                "module, so remove that first"
            ) from None
        if provider not in onnxruntime.get_available_providers():
            raise BackendError(
                f"this ONNX Runtime {onnxruntime.__version__} has no {provider}: pip uninstall onnxruntime, then "
                "pip install 'patchcaption[gpu]'; the two wheels share one module"
            )
        self._device = device or current_gpu()
        self._onnxruntime, self._provider = onnxruntime, provider
        self._engine_cache, self._precision = engine_cache, precision
        self._stream = Stream(self._device)
        self._thread = ThreadPoolExecutor(1, "patchcaption onnxruntime")  # starts when it is first used
        if self._device.type == "cuda" and hasattr(onnxruntime, "preload_dlls"):
            onnxruntime.preload_dlls()  # finds the CUDA libraries that torch's wheels brought

    @property
    def name(self) -> str:
        return f"onnxruntime {self._onnxruntime.__version__} {self._provider}"

    @property
    def device(self) -> torch.device:
        return self._device

    @property
    def needs_warm_up(self) -> bool:
        return True

    def open(self, files: EngineFiles, concurrency: int = 1) -> OrtGpuEngine:  # noqa: ARG002  # runs follow one another
        captures = self._provider == CUDA and self._device.type == "cuda"
        try:
            session = self._session(files, captures)
        except BackendError:
            if not captures:
                raise
            captures = False
            session = self._session(files, captures)
        graph_thread = self._thread if captures else None
        return OrtGpuEngine(self._onnxruntime, session, files.graph, self._device, self._stream, graph_thread)

    def _session(self, files: EngineFiles, captures: bool) -> Any:
        path = files.graph
        options = self._onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        providers = self._providers(files, captures)
        try:
            with files.opened_by_path():
                session = self._onnxruntime.InferenceSession(str(path), options, providers=providers)
        except BundleError:
            raise
        except Exception as error:  # ONNX Runtime raises its own unrelated types
            raise BackendError(f"{path}: ONNX Runtime cannot load it: {first_line(error)}") from error
        used = session.get_providers()
        if self._provider not in used:
            raise BackendError(
                f"{path}: asked for {self._provider}, got {', '.join(used)}: its CUDA libraries cannot be loaded; "
                "install those that this ONNX Runtime was built for, or take --backend cpu"
            )
        _check_placement(path, session)
        if files.contract is not None:
            inputs, outputs = declared_tensors(session.get_inputs()), declared_tensors(session.get_outputs())
            files.contract.check_declared(path, inputs, outputs)
        return session

    def _providers(self, files: EngineFiles, captures: bool) -> list[tuple[str, dict[str, str]]]:
        if self._device.type == "cpu":
            return [(self._provider, {})]
        common = {
            "device_id": str(self._device.index or 0),
            "has_user_compute_stream": "1",
            "user_compute_stream": str(self._stream.handle),
        }
        # float32 is float32: TF32 keeps 10 bits of it.
        cuda = (CUDA, common | {"use_tf32": "0", "enable_cuda_graph": str(int(captures))})
        if self._provider == CUDA:
            return [cuda]
        options = {f"trt_{precision}_enable": "1" for precision in _HALF_PRECISIONS[self._precision]}
        if options:
            options["trt_layer_norm_fp32_fallback"] = "1"
        if self._engine_cache is not None:
            options |= {"trt_timing_cache_enable": "1", "trt_timing_cache_path": str(self._engine_cache)}
        if self._engine_cache is not None and files.sha256:
            options |= {
                "trt_engine_cache_enable": "1",
                "trt_engine_cache_path": str(self._engine_cache),
                # The provider tells engines apart by the graph's structure, not by its weights.
                "trt_engine_cache_prefix": f"{files.graph.stem}-{files.sha256}",
            }
        return [(TENSORRT, common | options), cuda]


class OrtGpuEngine:
    """A graph in an ONNX Runtime session on a GPU.

    Args:
        graph_thread: runs the session where it captures CUDA graphs: ONNX Runtime keeps a set of graphs, and libraries'
            handles, for each thread that runs it. None where it captures none.
    """

    def __init__(
        self,
        onnxruntime: Any,
        session: Any,
        path: Path,
        device: torch.device,
        stream: Stream,
        graph_thread: ThreadPoolExecutor | None,
    ) -> None:
        self.stream = stream
        self._onnxruntime, self._session, self._path, self._device = onnxruntime, session, path, device
        self._graph_thread, self._graphs = graph_thread, 0
        self._inputs = {one.name: one for one in session.get_inputs()}
        self._outputs = {one.name: one for one in session.get_outputs()}

    @property
    def bindable(self) -> BindableEngine:
        return self

    def report(self) -> EngineReport:
        session = self._require_open()
        counts = {one: len(_operators(session, one)) for one in session.get_providers()}
        providers = (f"{one}{f' ({count} operators)' if count else ''}" for one, count in counts.items())
        return EngineReport(", ".join(providers))

    def dtype(self, name: str) -> torch.dtype:
        return DTYPES[(self._inputs | self._outputs)[name].type][0]

    def run(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        # Outside the stream, where they are read.
        inputs = {name: aligned(tensor) for name, tensor in inputs.items()}
        outputs = {name: self._empty_output(name, inputs) for name in self._outputs}
        with self.stream.active():
            self._bind(inputs, outputs, _WITHOUT_GRAPH).run()
        return outputs

    def bind(self, inputs: Mapping[str, Tensor], outputs: Mapping[str, Tensor]) -> OrtBoundRun:
        with self.stream.exclusive:
            self._graphs += 1
            return self._bind(inputs, outputs, str(self._graphs) if self._graph_thread else _WITHOUT_GRAPH)

    def execute(self, binding: Any, graph: str) -> None:
        """Enqueue a run of bound memory; one at a time, as CUDA graphs ask for.

        Args:
            graph: the id under which it is captured and replayed.

        Raises:
            BackendError: ONNX Runtime cannot run it, or the engine was closed.
        """
        options = self._onnxruntime.RunOptions()
        options.add_run_config_entry("gpu_graph_id", graph)
        options.add_run_config_entry("disable_synchronize_execution_providers", "1")
        with self.stream.exclusive:
            session = self._require_open()
            try:
                if self._graph_thread is None:
                    session.run_with_iobinding(binding, options)
                else:
                    self._graph_thread.submit(session.run_with_iobinding, binding, options).result()
            except Exception as error:  # ONNX Runtime raises its own unrelated types
                raise BackendError(f"{self._path}: ONNX Runtime cannot run it: {first_line(error)}") from error

    def close(self) -> None:
        with self.stream.exclusive:
            self.stream.synchronize()
            self._session = None

    def _bind(self, inputs: Mapping[str, Tensor], outputs: Mapping[str, Tensor], graph: str) -> OrtBoundRun:
        session = self._require_open()
        binding = session.io_binding()
        for expected, given, bind in (
            (self._inputs, inputs, binding.bind_input),
            (self._outputs, outputs, binding.bind_output),
        ):
            if expected.keys() != given.keys():
                raise BackendError(f"{self._path}: expected {sorted(expected)}, got {sorted(given)}")
            for name, tensor in given.items():
                dtype, number = DTYPES[expected[name].type]
                if tensor.dtype != dtype or tensor.device != self._device or not tensor.is_contiguous():
                    raise BackendError(
                        f"{self._path}: {name}: expected contiguous {dtype} on {self._device}, got {tensor.dtype} on "
                        f"{tensor.device}"
                    )
                bind(name, self._device.type, self._device.index or 0, number, list(tensor.shape), tensor.data_ptr())
        return OrtBoundRun(self, binding, graph, {**inputs, **outputs})

    def _require_open(self) -> Any:
        if self._session is None:
            raise BackendError(f"{self._path}: it was closed; load the bundle again")
        return self._session

    def _empty_output(self, name: str, inputs: Mapping[str, Tensor]) -> Tensor:
        sizes: dict[str, int] = {}
        for given, tensor in inputs.items():
            sizes.update(_named_sizes(self._inputs[given].shape, tensor))
        shape = [sizes[size] if isinstance(size, str) else size for size in self._outputs[name].shape]
        return torch.empty(shape, dtype=self.dtype(name), device=self._device)


class OrtBoundRun:
    """A session's run over fixed memory, which it keeps."""

    def __init__(self, engine: OrtGpuEngine, binding: Any, graph: str, tensors: Mapping[str, Tensor]) -> None:
        self._engine, self._binding, self._graph, self._tensors = engine, binding, graph, tensors
        self._is_captured = False

    @property
    def capture_mode(self) -> CaptureMode:
        return "none" if self._graph == _WITHOUT_GRAPH else "within"

    def run(self) -> None:
        if self._graph == _WITHOUT_GRAPH or self._is_captured:
            self._engine.execute(self._binding, self._graph)
            return
        try:
            self._engine.execute(self._binding, self._graph)
            self._is_captured = True
        except BackendError:  # perhaps only of the capture; else it comes again
            self._graph = _WITHOUT_GRAPH
            self._engine.execute(self._binding, self._graph)


_COMPUTE_OPERATORS = frozenset(
    {"MatMul", "Gemm", "Conv", "Softmax", "LayerNormalization", "Gelu", "FusedMatMul", "Attention"}
)


def _check_placement(path: Path, session: Any) -> None:
    """Raise if a compute operator of a graph for a GPU was left to the CPU."""
    on_cpu = sorted(_COMPUTE_OPERATORS & set(operators_on(session, CPU)))
    if on_cpu and session.get_providers() != [CPU]:
        raise BackendError(
            f"{path}: ONNX Runtime would run {', '.join(on_cpu)} on the CPU: this build's provider lacks them in the "
            "bundle's precision; build the bundle with --precision fp32 or fp16"
        )


def operators_on(session: Any, provider: str) -> Sequence[str]:
    """Return the kinds of operators that a provider executes, as the session itself reports."""
    return sorted(set(_operators(session, provider)))


def _operators(session: Any, provider: str) -> Sequence[str]:
    """Return the kind of each operator that a provider executes; nothing where the session does not report it."""
    if not hasattr(session, "get_provider_graph_assignment_info"):  # ONNX Runtime before 1.24
        return []
    parts = [part for part in session.get_provider_graph_assignment_info() if part.ep_name == provider]
    return [node.op_type for part in parts for node in part.get_nodes()]


def _named_sizes(shape: Sequence[int | str], tensor: Tensor) -> dict[str, int]:
    return {size: given for size, given in zip(shape, tensor.shape, strict=True) if isinstance(size, str)}
