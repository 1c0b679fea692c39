"""Checks each backend with a small graph: whether it opens it, runs it and is right."""

from __future__ import annotations

import base64
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from runtime.backends import BACKENDS, Backend
from runtime.backends.cuda.device import Gpu, current_gpu
from runtime.backends.cuda.stream import Stream
from runtime.backends.cuda.workspace import Workspace
from runtime.backends.registry import BackendRequest, BackendSpec
from runtime.backends.tensorrt.api import TensorRtApi, open_tensorrt
from runtime.backends.tensorrt.build import build_plan_bytes
from runtime.backends.tensorrt.engine import TrtEngine
from runtime.backends.tensorrt.rtx import check_supported, open_tensorrt_rtx, set_build_targets
from runtime.bundle import EngineFiles, ShapeRange
from runtime.doctor.finding import Finding
from runtime.errors import BackendError

if TYPE_CHECKING:
    import tensorrt

SMALL_GRAPH = base64.b64decode(
    "CAk6owEKEQoBeAoBdxIBcCIGTWF0TXVsCgwKAXASAXkiBFJlbHUSAWcqSwgECAQQAUIBd0pAAAAAAAAAAD4AAIA+AADAPgAAAD8AACA/AABAPwAA"
    "YD8AAIA/AACQPwAAoD8AALA/AADAPwAA0D8AAOA/AADwP1oXCgF4EhIKEAgBEgwKBhIEcm93cwoCCARiFwoBeRISChAIARIMCgYSBHJvd3MKAggE"
    "QgQKABAU"
)
"""An ONNX graph: y = relu(x @ w), x (rows, 4), w (4, 4) = 0, 1, 2, ... 15 eighths."""

_OPENERS: dict[str, Callable[[], TensorRtApi]] = {"tensorrt": open_tensorrt, "tensorrt-rtx": open_tensorrt_rtx}
_ROWS = 3
_REINSTALL = "reinstall the package, in the version that fits the driver; report it with `doctor --json` if it stays"


def on_backends() -> Iterator[Finding]:
    """Yield a finding for each backend and precision. One that is not installed, or has no GPU, is "unavailable"."""
    for spec in BACKENDS.values():
        if spec.needs_plans:
            yield _try_plans(spec.name)
            continue
        for precision in spec.compute_precisions:
            subject = f"backend {spec.name}" + ("" if precision == "fp32" else f" {precision}")
            yield _try_backend(subject, _opener(spec, BackendRequest(precision=precision)))


def _opener(spec: BackendSpec, request: BackendRequest) -> Callable[[], Backend]:
    return lambda: spec.open(request)


def _try_backend(subject: str, open_backend: Callable[[], Backend]) -> Finding:
    try:
        backend = open_backend()
    except BackendError as error:
        return Finding(subject, "unavailable", str(error))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "small.onnx"
        path.write_bytes(SMALL_GRAPH)
        try:
            outputs = backend.open(EngineFiles(path)).run({"x": _input().to(backend.device)})
        except BackendError as error:
            return Finding(subject, "fail", f"{backend.name}: {error}", _REINSTALL)
    return _compare_output(subject, backend.name, outputs["y"])


def _try_plans(name: str) -> Finding:
    try:
        api, device = _OPENERS[name](), current_gpu()
        check_supported(api, Gpu.of(device))
    except BackendError as error:
        return Finding(f"backend {name}", "unavailable", str(error))
    try:
        engine = TrtEngine(
            api, _build_small_engine(api, device), Path("small.plan"), device, Stream(device), Workspace(device)
        )
        y = engine.run({"x": _input().to(device)})["y"]
    except BackendError as error:
        return Finding(f"backend {name}", "fail", str(error), _REINSTALL)
    return _compare_output(f"backend {name}", f"{name} {api.version}", y)


def _build_small_engine(api: TensorRtApi, device: torch.device) -> tensorrt.ICudaEngine:
    """Build and load a plan of the small graph."""
    rows = ShapeRange(min=(1, 4), opt=(_ROWS, 4), max=(_ROWS, 4))

    def configure(config: tensorrt.IBuilderConfig) -> None:
        if api.product == "tensorrt-rtx":
            set_build_targets(api, config, (Gpu.of(device).compute_capability,))

    plan = build_plan_bytes(api, lambda parser: parser.parse(SMALL_GRAPH), [{"x": rows}], "a small graph", configure)
    runtime = api.require(api.module.Runtime(api.logger), "starting its runtime")
    return api.require(runtime.deserialize_cuda_engine(plan), "loading a small plan")


def _compare_output(subject: str, name: str, y: Tensor) -> Finding:
    weights = torch.arange(16, dtype=torch.float32).reshape(4, 4) / 8
    difference = float((y.cpu().float() - torch.relu(_input() @ weights)).abs().max())
    if difference <= 1e-2:  # sums below 10, in bfloat16 too: the numbers are eighths
        return Finding(subject, "pass", f"{name}, right on a small graph")
    return Finding(subject, "fail", f"{name}: wrong by {difference:.2g} on a small graph", _REINSTALL)


def _input() -> Tensor:
    return torch.arange(-4, 4 * _ROWS - 4, dtype=torch.float32).reshape(_ROWS, 4) / 8
