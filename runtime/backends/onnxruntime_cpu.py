"""ONNX Runtime's CPU provider."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from runtime.backends.base import BindableEngine, EngineReport, first_line
from runtime.backends.imports import import_onnxruntime
from runtime.backends.onnxruntime_io import declared_tensors
from runtime.bundle import EngineFiles
from runtime.errors import BackendError, BundleError
from runtime.system.heap import return_free_memory
from runtime.system.machine import threads_per_caller

PROVIDER = "CPUExecutionProvider"


class OrtBackend:
    """Executes ONNX graphs with ONNX Runtime on the CPU.

    Args:
        threads: how many threads an engine may use; None leaves it to ONNX Runtime, which takes every physical core.

    Raises:
        BackendError: ONNX Runtime is not installed.
    """

    def __init__(self, threads: int | None = None) -> None:
        try:
            onnxruntime = import_onnxruntime()
        except ImportError as error:
            raise BackendError(
                f"ONNX Runtime cannot be imported ({error}): pip install 'patchcaption[cpu]', or [gpu] on a machine "
                "with an NVIDIA GPU; the two wheels share one module, so install one of them only"
            ) from None
        self._onnxruntime, self._threads = onnxruntime, threads

    @property
    def name(self) -> str:
        return f"onnxruntime {self._onnxruntime.__version__} {PROVIDER}"

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    @property
    def needs_warm_up(self) -> bool:
        return False

    def open(self, files: EngineFiles, concurrency: int = 1) -> OrtEngine:
        options = self._session_options(threads_per_caller(concurrency, self._threads))
        try:
            session = self._session(files, options)
        except BundleError:
            raise
        except Exception as error:  # ONNX Runtime raises its own unrelated types
            raise BackendError(f"{files.graph}: ONNX Runtime cannot load it: {first_line(error)}") from error
        return_free_memory()
        return OrtEngine(session, files)

    def _session(self, files: EngineFiles, options: Any) -> Any:
        """Return a session of the files that the bundle holds, of which none stays mapped.

        Older versions of ONNX Runtime cannot be given weights in memory: they map the files, which must stay unchanged.
        """
        add_weights = getattr(options, "add_external_initializers_from_files_in_memory", None)
        if not files.held or add_weights is None:
            with files.opened_by_path():
                return self._onnxruntime.InferenceSession(str(files.graph), options, providers=[PROVIDER])
        graph, *weights = files.held
        contents = [file.read() for file in weights]  # copied before the session is there, and not needed by it
        if weights:
            add_weights([file.path.name for file in weights], contents, [len(content) for content in contents])
        return self._onnxruntime.InferenceSession(bytes(graph.read()), options, providers=[PROVIDER])

    def _session_options(self, threads: int | None) -> Any:
        options = self._onnxruntime.SessionOptions()
        options.log_severity_level = 3  # its own warnings are about graphs that users did not write
        # Spinning threads would take the cores from torch between two calls, and from the host program.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        # Planning where each tensor lies makes ViT-B take 290 MiB more, and no less time.
        options.enable_mem_pattern = False
        if threads is not None:
            options.intra_op_num_threads = threads
        return options


class OrtEngine:
    """A graph in an ONNX Runtime session on the CPU."""

    bindable: BindableEngine | None = None

    def __init__(self, session: Any, files: EngineFiles) -> None:
        self._session: Any = session
        self._path, self._contract = files.graph, files.contract
        self._outputs = [output.name for output in session.get_outputs()]
        if self._contract is not None:
            inputs, outputs = declared_tensors(session.get_inputs()), declared_tensors(session.get_outputs())
            self._contract.check_declared(self._path, inputs, outputs)

    def report(self) -> EngineReport:
        return EngineReport(", ".join(self._require_open().get_providers()))

    def run(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        session = self._require_open()
        feeds = {name: tensor.numpy() for name, tensor in inputs.items()}
        try:
            results = session.run(self._outputs, feeds)
        except Exception as error:
            raise BackendError(f"{self._path}: ONNX Runtime cannot run it: {first_line(error)}") from error
        outputs = {name: torch.from_numpy(result) for name, result in zip(self._outputs, results, strict=True)}
        if self._contract is not None:
            self._contract.check_outputs(self._path, inputs, outputs)
        return outputs

    def close(self) -> None:
        self._session = None

    def _require_open(self) -> Any:
        if self._session is None:
            raise BackendError(f"{self._path}: it was closed; load the bundle again")
        return self._session
