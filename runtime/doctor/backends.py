"""Each backend with a small graph: whether it opens it, runs it and is right."""

from __future__ import annotations

import base64
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from runtime.backends import Backend, OpenVinoBackend, OrtBackend
from runtime.backends.cuda.device import current_gpu
from runtime.backends.cuda.stream import Stream
from runtime.backends.cuda.workspace import Scratch
from runtime.backends.onnxruntime_gpu import CUDA, TENSORRT, OrtGpuBackend
from runtime.backends.tensorrt.api import TensorRt, open_tensorrt
from runtime.backends.tensorrt.engine import TrtEngine
from runtime.doctor.finding import Finding
from runtime.errors import BackendError

if TYPE_CHECKING:
    import tensorrt

SMALL_GRAPH = base64.b64decode(
    "CAk6owEKEQoBeAoBdxIBcCIGTWF0TXVsCgwKAXASAXkiBFJlbHUSAWcqSwgECAQQAUIBd0pAAAAAAAAAAD4AAIA+AADAPgAAAD8AACA/AABAPwAA"
    "YD8AAIA/AACQPwAAoD8AALA/AADAPwAA0D8AAOA/AADwP1oXCgF4EhIKEAgBEgwKBhIEcm93cwoCCARiFwoBeRISChAIARIMCgYSBHJvd3MKAggE"
    "QgQKABAU"
)
"""ONNX: y = relu(x @ w), x (rows, 4), w (4, 4) = 0, 1, 2, ... 15 eighths."""

_ROWS = 3


def on_backends() -> Iterator[Finding]:
    """A finding for each backend. One that is not installed, or has no GPU, is "not here"."""
    yield _tried("backend cpu", OrtBackend)
    yield _tried("backend openvino", OpenVinoBackend)
    yield _tried("backend openvino bf16", lambda: OpenVinoBackend(precision="bf16"))
    yield _tried("backend ort-cuda", lambda: OrtGpuBackend(CUDA))
    yield _tried("backend ort-tensorrt", lambda: OrtGpuBackend(TENSORRT))
    yield _on_tensorrt()


def _tried(subject: str, start: Callable[[], Backend]) -> Finding:
    try:
        backend = start()
    except BackendError as error:
        return Finding(subject, "not here", str(error))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "small.onnx"
        path.write_bytes(SMALL_GRAPH)
        try:
            outputs = backend.open(path).run({"x": _input().to(backend.device)})
        except BackendError as error:
            return Finding(subject, "fail", f"{backend.name}: {error}", _REINSTALL)
    return _compared(subject, backend.name, outputs["y"])


def _on_tensorrt() -> Finding:
    try:
        trt, device = open_tensorrt(), current_gpu()
    except BackendError as error:
        return Finding("backend tensorrt", "not here", str(error))
    stream = Stream(device)
    try:
        engine = TrtEngine(trt, _built(trt), Path("small.plan"), device, stream, Scratch(device))
        y = engine.run({"x": _input().to(device)})["y"]
    except BackendError as error:
        return Finding("backend tensorrt", "fail", str(error), _REINSTALL)
    return _compared("backend tensorrt", f"tensorrt {trt.version}", y)


_REINSTALL = (
    "install the package again, in the version that fits the driver; report it with `doctor --json` if it stays"
)


def _built(trt: TensorRt) -> tensorrt.ICudaEngine:
    """A plan of the small graph, built and loaded."""
    import tensorrt

    builder = trt.checked(tensorrt.Builder(trt.logger), "starting a builder")
    typed = 1 << int(tensorrt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network = trt.checked(builder.create_network(typed), "making a network")
    parser = tensorrt.OnnxParser(network, trt.logger)
    trt.checked(parser.parse(SMALL_GRAPH), "reading a small graph")
    config = trt.checked(builder.create_builder_config(), "making a configuration")
    profile = builder.create_optimization_profile()
    profile.set_shape("x", (1, 4), (_ROWS, 4), (_ROWS, 4))
    trt.checked(config.add_optimization_profile(profile) >= 0, "adding a profile")
    plan = trt.checked(builder.build_serialized_network(network, config), "building a small plan")
    runtime = trt.checked(tensorrt.Runtime(trt.logger), "starting its runtime")
    return trt.checked(runtime.deserialize_cuda_engine(bytes(plan)), "loading a small plan")


def _compared(subject: str, name: str, y: Tensor) -> Finding:
    weights = torch.arange(16, dtype=torch.float32).reshape(4, 4) / 8
    difference = float((y.cpu().float() - torch.relu(_input() @ weights)).abs().max())
    if difference <= 1e-2:  # sums below 10, in bfloat16 too: the numbers are eighths
        return Finding(subject, "pass", f"{name}, right on a small graph")
    return Finding(subject, "fail", f"{name}: wrong by {difference:.2g} on a small graph", _REINSTALL)


def _input() -> Tensor:
    return torch.arange(-4, 4 * _ROWS - 4, dtype=torch.float32).reshape(_ROWS, 4) / 8
