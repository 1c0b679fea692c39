"""Backends by name."""

from __future__ import annotations

from runtime.backends.base import Backend, Engine
from runtime.backends.choice import choose
from runtime.backends.openvino import OpenVinoBackend
from runtime.backends.ort import OrtBackend
from runtime.bundle import Bundle
from runtime.errors import BackendError
from runtime.options import Precision

BACKENDS = ("auto", "cpu", "openvino")
PRECISIONS = ("fp32", "bf16")


def open_backend(
    name: str, threads: int | None = None, precision: Precision = "fp32", bundle: Bundle | None = None
) -> Backend:
    """The backend called ``name``: "cpu" for ONNX Runtime, "openvino", or "auto" for what `choose` takes of them.

    Args:
        precision: what it computes in: "fp32", or with OpenVINO "bf16".
        bundle: what it will open, if that is known: "auto" looks up what was measured for it.

    Raises:
        BackendError: no backend of that name, what it needs is not installed, or it does not have that precision.
    """
    if name not in BACKENDS:
        raise BackendError(f"backend {name!r}: expected one of {', '.join(map(repr, BACKENDS))}")
    if name == "auto":
        name = choose(bundle, precision, threads).backend
    if precision == "bf16" and bundle is not None and bundle.manifest.backbone.precision != "fp32":
        raise BackendError(
            f"precision 'bf16': the graphs of {bundle.folder} are {bundle.manifest.backbone.precision}, and both "
            "roundings together change too many captions; use fp32, or a bundle built with --precision fp32"
        )
    if name == "openvino":
        return OpenVinoBackend(threads, precision)
    if precision != "fp32":
        raise BackendError(
            f"precision {precision!r}: the backend {name!r} computes in fp32; openvino has bf16, "
            "and int8 is how a bundle may be built"
        )
    return OrtBackend(threads)


__all__ = ["BACKENDS", "PRECISIONS", "Backend", "Engine", "OpenVinoBackend", "OrtBackend", "choose", "open_backend"]
