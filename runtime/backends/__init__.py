"""Backends by name."""

from __future__ import annotations

from runtime.backends.base import Backend, Engine
from runtime.backends.openvino import OpenVinoBackend
from runtime.backends.ort import OrtBackend
from runtime.errors import BackendError
from runtime.options import Precision

BACKENDS = ("auto", "cpu", "openvino")
PRECISIONS = ("fp32", "bf16")


def open_backend(name: str, threads: int | None = None, precision: Precision = "fp32") -> Backend:
    """The backend called ``name``: "cpu" for ONNX Runtime, "openvino", or "auto", which today is "cpu".

    Args:
        precision: what it computes in: "fp32", or with OpenVINO "bf16".

    Raises:
        BackendError: no backend of that name, what it needs is not installed, or it does not have that precision.
    """
    if name not in BACKENDS:
        raise BackendError(f"backend {name!r}: expected one of {', '.join(map(repr, BACKENDS))}")
    if name == "openvino":
        return OpenVinoBackend(threads, precision)
    if precision != "fp32":
        raise BackendError(f"precision {precision!r}: the backend {name!r} computes in fp32; openvino has bf16")
    return OrtBackend(threads)


__all__ = ["BACKENDS", "PRECISIONS", "Backend", "Engine", "OpenVinoBackend", "OrtBackend", "open_backend"]
