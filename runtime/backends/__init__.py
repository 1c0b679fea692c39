"""Backends by name."""

from __future__ import annotations

from pathlib import Path

from runtime.backends.base import Backend, Engine
from runtime.backends.onnxruntime_cpu import OrtBackend
from runtime.backends.onnxruntime_gpu import CUDA, TENSORRT, OrtGpuBackend
from runtime.backends.openvino import OpenVinoBackend
from runtime.backends.selection import choose
from runtime.backends.tensorrt.engine import TrtBackend
from runtime.bundle import Bundle
from runtime.errors import BackendError
from runtime.options import Precision
from runtime.system.user_dirs import cache_folder

BACKENDS = ("auto", "cpu", "openvino", "ort-cuda", "ort-tensorrt", "tensorrt")
PRECISIONS = ("fp32", "bf16")
_PROVIDERS = {"ort-cuda": CUDA, "ort-tensorrt": TENSORRT}


def open_backend(
    name: str, threads: int | None = None, precision: Precision = "fp32", bundle: Bundle | None = None
) -> Backend:
    """The backend called ``name``: "cpu" for ONNX Runtime, "openvino", "ort-cuda" and "ort-tensorrt" for ONNX Runtime
    on a GPU, "tensorrt", or "auto" for what `choose` takes of them.

    Args:
        precision: what it computes in: "fp32" for what the bundle's graphs say, or with OpenVINO "bf16".
        bundle: what it will open, if that is known: "auto" looks up what was measured for it.

    Raises:
        BackendError: no backend of that name, what it needs is not installed, or it does not have that precision.
    """
    if name not in BACKENDS:
        raise BackendError(f"backend {name!r}: expected one of {', '.join(map(repr, BACKENDS))}")
    if name == "auto":
        name = choose(bundle, precision, threads).backend
    if name in ("cpu", "openvino") and bundle is not None and bundle.manifest.backbone.precision == "bf16":
        raise BackendError(
            f"{bundle.folder}: its graphs are bf16, for GPUs; on a CPU open a bundle built with --precision fp32, "
            "which OpenVINO computes in bf16 if asked to"
        )
    if precision == "bf16" and bundle is not None and bundle.manifest.backbone.precision != "fp32":
        raise BackendError(
            f"precision 'bf16': the graphs of {bundle.folder} are {bundle.manifest.backbone.precision}, and both "
            "roundings together change too many captions; use fp32, or a bundle built with --precision fp32"
        )
    if name == "openvino":
        return OpenVinoBackend(threads, precision)
    if precision != "fp32":
        raise BackendError(
            f"precision {precision!r}: the backend {name!r} computes in what the bundle was built in; "
            "openvino has bf16, and int8 is how a bundle may be built"
        )
    if name == "tensorrt":
        if bundle is None:
            raise BackendError("backend 'tensorrt': it opens plans, which are a bundle's; name the bundle")
        return TrtBackend(bundle)
    if name in _PROVIDERS:
        in_graphs = "fp32" if bundle is None else bundle.manifest.backbone.precision
        return OrtGpuBackend(_PROVIDERS[name], engine_cache=_engine_cache(), precision=in_graphs)
    return OrtBackend(threads)


def _engine_cache() -> Path | None:
    """Where engines that are built at a first start are kept for the next; None where nothing can be written."""
    try:
        folder = cache_folder() / "ort-tensorrt"
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # RuntimeError: the user has no home
        return None
    return folder


__all__ = ["BACKENDS", "PRECISIONS", "Backend", "Engine", "OpenVinoBackend", "OrtBackend", "choose", "open_backend"]
