"""The backends, one line each: device, precisions, and how each is opened.

To add one: a file with its `Backend` and `Engine` (`runtime.backends.base`), its name in `BackendName`, a line here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

from runtime.backends.base import Backend, Device
from runtime.backends.onnxruntime_cpu import OrtBackend
from runtime.backends.onnxruntime_gpu import CUDA, TENSORRT, OrtGpuBackend
from runtime.backends.openvino import OpenVinoBackend
from runtime.backends.tensorrt.api import open_tensorrt
from runtime.backends.tensorrt.engine import TrtBackend
from runtime.backends.tensorrt.rtx import open_tensorrt_rtx
from runtime.bundle import EnginePrecision, GraphPrecision
from runtime.options import Precision, PrecisionName
from runtime.system.user_dirs import private_cache_folder

BackendName: TypeAlias = Literal["cpu", "openvino", "ort-cuda", "ort-tensorrt", "tensorrt", "tensorrt-rtx"]


@dataclass(frozen=True)
class BackendRequest:
    """A request to open a backend.

    Attributes:
        threads: CPU threads that an engine may use; None leaves it to the backend.
        precision: what it computes in: "fp32" for the precision of the graphs, or "bf16" for graphs in fp32 and int8.
        graph_precision: of the bundle's graphs.
    """

    threads: int | None = None
    precision: Precision = "fp32"
    graph_precision: GraphPrecision = "fp32"


@dataclass(frozen=True)
class BackendSpec:
    """One backend.

    Attributes:
        graph_precisions: precisions of graphs that it executes.
        open: opens it; raises BackendError where it cannot be used.
        compute_precisions: what it can be asked to compute in: "fp32" for the precision of the graphs.
        needs_plans: whether it executes plans that TensorRT built, and not the graphs themselves.
        default_precision: the precision of graphs that are exported for it, if none is asked for.
    """

    name: BackendName
    device: Device
    graph_precisions: tuple[EnginePrecision, ...]
    open: Callable[[BackendRequest], Backend]
    compute_precisions: tuple[Precision, ...] = ("fp32",)
    needs_plans: bool = False
    default_precision: EnginePrecision = "fp32"


def _open_openvino(request: BackendRequest) -> Backend:
    return OpenVinoBackend(request.threads, request.precision)


def _open_ort_gpu(provider: str) -> Callable[[BackendRequest], Backend]:
    return lambda request: OrtGpuBackend(
        provider, engine_cache=private_cache_folder("ort-tensorrt"), precision=request.graph_precision
    )


_SPECS = (
    BackendSpec("cpu", "cpu", ("fp32", "fp16", "int8"), lambda request: OrtBackend(request.threads)),
    BackendSpec("openvino", "cpu", ("fp32", "fp16", "int8"), _open_openvino, compute_precisions=("fp32", "bf16")),
    BackendSpec("ort-cuda", "cuda", ("fp32", "fp16", "bf16"), _open_ort_gpu(CUDA)),
    BackendSpec("ort-tensorrt", "cuda", ("fp32", "fp16", "bf16", "int8"), _open_ort_gpu(TENSORRT)),
    BackendSpec(
        "tensorrt",
        "cuda",
        ("fp32", "fp16", "bf16", "int8", "fp8"),
        lambda _: TrtBackend(open_tensorrt()),
        needs_plans=True,
    ),
    BackendSpec(
        "tensorrt-rtx",
        "cuda",
        ("fp32", "fp16", "bf16", "int8", "fp8"),
        lambda _: TrtBackend(open_tensorrt_rtx()),
        needs_plans=True,
        default_precision="fp16",
    ),
)

BACKENDS: Mapping[BackendName, BackendSpec] = {spec.name: spec for spec in _SPECS}
BACKEND_NAMES: tuple[str, ...] = ("auto", *BACKENDS)
"""The names that users may ask for."""
TAKES_BFLOAT16: tuple[GraphPrecision, ...] = ("fp32", "int8")
"""Precisions of graphs of which a backend may compute in bfloat16 what they leave in float32."""
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
PRECISION_NAMES: tuple[str, ...] = get_args(PrecisionName)
"""The precisions that users may ask for."""
