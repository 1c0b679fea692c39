"""Stand-ins for parts of a pipeline: engines that record their use, and bundles with another manifest."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor

from runtime import Captioner
from runtime.backends import Backend, Engine, EngineReport
from runtime.backends.base import BindableEngine, BoundRun
from runtime.backends.cuda.stream import Stream
from runtime.backends.onnxruntime_cpu import OrtBackend
from runtime.bundle import Bundle, EngineFiles
from runtime.image import Fit
from runtime.pipeline import Pipeline

Shapes = dict[str, torch.Size]


class RecordingEngine:
    """An engine that records each run and each binding.

    Attributes:
        runs: the shapes of the inputs of each run.
        bindings: the shapes of the inputs of each binding.
        bound_runs: the result of each binding.
    """

    stream: Stream

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        if engine.bindable is not None:
            self.stream = engine.bindable.stream
        self.runs: list[Shapes] = []
        self.bindings: list[Shapes] = []
        self.bound_runs: list[BoundRun] = []

    @property
    def bindable(self) -> BindableEngine | None:
        return None if self._engine.bindable is None else self

    def dtype(self, name: str) -> torch.dtype:
        return self._require_bindable().dtype(name)

    def run(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        self.runs.append(_shapes(inputs))
        return self._engine.run(inputs)

    def bind(self, inputs: Mapping[str, Tensor], outputs: Mapping[str, Tensor]) -> BoundRun:
        self.bindings.append(_shapes(inputs))
        self.bound_runs.append(self._require_bindable().bind(inputs, outputs))
        return self.bound_runs[-1]

    def report(self) -> EngineReport:
        return self._engine.report()

    def close(self) -> None:
        self._engine.close()

    def _require_bindable(self) -> BindableEngine:
        assert self._engine.bindable is not None
        return self._engine.bindable


class RecordingBackend:
    """A backend whose engines record their use.

    Attributes:
        opened: the names of the engines, in the order they were opened.
        engines: the last opened engine of each name.
    """

    def __init__(self, backend: Backend | None = None) -> None:
        self._backend: Backend = backend or OrtBackend()
        self.opened: list[str] = []
        self.engines: dict[str, RecordingEngine] = {}

    @property
    def name(self) -> str:
        return self._backend.name

    @property
    def device(self) -> torch.device:
        return self._backend.device

    @property
    def needs_warm_up(self) -> bool:
        return self._backend.needs_warm_up

    def open(self, files: EngineFiles, concurrency: int = 1) -> RecordingEngine:
        name = files.graph.stem
        self.opened.append(name)
        self.engines[name] = RecordingEngine(self._backend.open(files, concurrency))
        return self.engines[name]


def with_manifest(bundle: Bundle, **changes: object) -> Bundle:
    """Return a bundle of the same files whose manifest has other values."""
    other = copy.copy(bundle)
    other.manifest = bundle.manifest.model_copy(update=changes)
    return other


def without_engine(bundle: Bundle, name: str) -> Bundle:
    """Return a bundle as it is where it was built without an engine."""
    engines = {kept: record for kept, record in bundle.manifest.engines.items() if kept != name}
    return with_manifest(bundle, engines=engines)


def captioner_of(bundle: Bundle, backend: Backend | None = None) -> Captioner:
    """Return a captioner of a bundle on a backend, by default ONNX Runtime on the CPU."""
    return Captioner(Pipeline.load(bundle, backend or OrtBackend(), Fit.STRETCH))


def _shapes(tensors: Mapping[str, Tensor]) -> Shapes:
    return {name: tensor.shape for name, tensor in tensors.items()}
