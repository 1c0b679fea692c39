"""ONNX Runtime on its CPU provider."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from runtime.backends.base import first_line
from runtime.backends.weight_pages import release_mapped
from runtime.errors import BackendError
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
            import onnxruntime
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

    def open(self, path: Path, callers: int = 1) -> OrtEngine:
        options = self._options(threads_per_caller(callers, self._threads))
        try:
            session = self._onnxruntime.InferenceSession(str(path), options, providers=[PROVIDER])
        except Exception as error:  # ONNX Runtime raises its own unrelated types
            raise BackendError(f"{path}: ONNX Runtime cannot load it: {first_line(error)}") from error
        release_mapped(path.parent)
        return OrtEngine(session, path)

    def _options(self, threads: int | None) -> Any:
        options = self._onnxruntime.SessionOptions()
        options.log_severity_level = 3  # its own warnings are about graphs that users did not write
        # Threads that wait by spinning would take the cores from torch between two calls, and from the host program.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        # A plan of where each tensor lies in memory makes a backbone take 290 MiB more at ViT-B, and no faster.
        options.enable_mem_pattern = False
        if threads is not None:
            options.intra_op_num_threads = threads
        return options


class OrtEngine:
    """A graph in an ONNX Runtime session."""

    def __init__(self, session: Any, path: Path) -> None:
        self._session: Any = session
        self._path = path
        self._outputs = [output.name for output in session.get_outputs()]

    @property
    def runs_on(self) -> str:
        return ", ".join(self._opened().get_providers())

    def run(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        session = self._opened()
        feeds = {name: tensor.numpy() for name, tensor in inputs.items()}
        try:
            results = session.run(self._outputs, feeds)
        except Exception as error:
            raise BackendError(f"{self._path}: ONNX Runtime cannot run it: {first_line(error)}") from error
        return {name: torch.from_numpy(result) for name, result in zip(self._outputs, results, strict=True)}

    def close(self) -> None:
        self._session = None

    def _opened(self) -> Any:
        if self._session is None:
            raise BackendError(f"{self._path}: it was closed; load the bundle again")
        return self._session
