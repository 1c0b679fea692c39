"""Opens backends by name, and chooses the one that backend="auto" stands for.

"auto" is the backend that was measured here to be fastest; where nothing was measured, the first of a fixed order.
Measurements (`runtime.doctor.autotune`) are kept in one small file in the user's cache folder. They hold for the
bundle, the machine, the versions and the options that they were made with, and for nothing else.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from pydantic import BaseModel, ConfigDict, ValidationError

from runtime.backends.base import Backend
from runtime.backends.cuda.device import gpu_name
from runtime.backends.registry import BACKEND_NAMES, BACKENDS, BackendName, BackendRequest
from runtime.bundle import Bundle, GraphPrecision
from runtime.errors import BackendError
from runtime.options import Precision, check_threads
from runtime.system.files import write_atomically
from runtime.system.machine import cpu_name, package_version, usable_cores
from runtime.system.user_dirs import cache_folder, make_private

_PACKAGES = ("onnxruntime", "onnxruntime-gpu", "openvino", "tensorrt", "tensorrt-rtx", "tensorrt-rtx-cu12-bindings")


@dataclass(frozen=True)
class Selection:
    """The backend that "auto" stands for, and why."""

    backend: BackendName
    reason: str
    is_measured: bool = False


def open_backend(
    name: str, threads: int | None = None, precision: Precision = "fp32", bundle: Bundle | None = None
) -> Backend:
    """Open a backend of `runtime.backends.registry`, or for "auto" the one that `select_backend` chooses.

    Args:
        precision: what it computes in: "fp32" for the precision of the bundle's graphs, or with OpenVINO "bf16".
        bundle: what it will execute, if that is known: "auto" looks up what was measured for it.

    Raises:
        BackendError: no backend of that name, what it needs is not installed, or it does not have that precision.
        PatchcaptionError: a number of threads that cannot be meant.
    """
    if name not in BACKEND_NAMES:
        raise BackendError(f"backend {name!r}: expected one of {', '.join(map(repr, BACKEND_NAMES))}")
    if threads is not None:
        check_threads("threads", threads)
    known = select_backend(bundle, precision, threads).backend if name == "auto" else cast(BackendName, name)
    _check_precision(known, precision, bundle)
    return BACKENDS[known].open(BackendRequest(threads, precision, _graph_precision(bundle)))


def _graph_precision(bundle: Bundle | None) -> GraphPrecision:
    return "fp32" if bundle is None else bundle.manifest.engines["backbone"].precision


def _check_precision(name: BackendName, precision: Precision, bundle: Bundle | None) -> None:
    """Raise if a backend does not execute a bundle's graphs, or not in the precision asked for."""
    spec, in_graphs = BACKENDS[name], _graph_precision(bundle)
    if bundle is not None and in_graphs not in spec.graph_precisions:
        raise BackendError(
            f"{bundle.folder}: its graphs are {in_graphs}, which the backend {name!r} does not execute; expected "
            f"{', '.join(spec.graph_precisions)}: build the bundle with such a --precision"
        )
    if bundle is not None and precision != "fp32" and in_graphs not in ("fp32", "int8"):
        raise BackendError(
            f"precision {precision!r}: the graphs of {bundle.folder} are {in_graphs}, and both roundings together "
            "change too many captions; use fp32, or a bundle built with --precision fp32"
        )
    if precision not in spec.compute_precisions:
        able = [other.name for other in BACKENDS.values() if precision in other.compute_precisions]
        if able:
            raise BackendError(
                f"precision {precision!r}: the backend {name!r} computes in the precision of the graphs; use fp32, or "
                f"the backend {' or '.join(able)}"
            )
        expected = " or ".join(spec.compute_precisions)
        raise BackendError(f"precision {precision!r}: with the backend {name!r} expected {expected}")


def select_backend(
    bundle: Bundle | None = None, precision: Precision = "fp32", threads: int | None = None
) -> Selection:
    """Return what "auto" is for a bundle; without one, nothing is looked up.

    Where nothing was measured, a bundle for a GPU is opened with the backend that it was built for, whether that is
    there or not, and one for CPUs with ONNX Runtime, "cpu", also where OpenVINO is installed: that may be faster, but
    rounds differently, and installing a package should not change results. For bfloat16 it is OpenVINO, which alone has
    it.
    """
    measured = None if bundle is None else _read().measurements.get(_key(bundle, precision, threads))
    if measured is not None:
        return Selection(measured.backend, "measured on this machine", is_measured=True)
    if bundle is not None and bundle.manifest.backend != "cpu":
        return Selection(bundle.manifest.backend, "the bundle was built for it")
    if precision == "bf16":
        return Selection("openvino", "by order: it alone has bf16")
    return Selection("cpu", "by order: not measured here")


def save_measurement(
    bundle: Bundle, precision: Precision, threads: int | None, milliseconds: Mapping[BackendName, float]
) -> BackendName:
    """Record the backend that took least time, from now on "auto" for this bundle; return its name.

    Raises:
        BackendError: the file cannot be written.
    """
    fastest = min(milliseconds, key=lambda name: milliseconds[name])
    record = _Measurement(backend=fastest, bundle=str(bundle.folder.absolute()), milliseconds=dict(milliseconds))
    kept = _Measurements(measurements=_read().measurements | {_key(bundle, precision, threads): record})
    try:
        file = measurements_file()
        make_private(file.parent)
        with write_atomically(file) as part:
            part.write_text(kept.model_dump_json(indent=2) + "\n", encoding="utf-8")
    except (OSError, RuntimeError) as error:  # RuntimeError: the user has no home
        raise BackendError(
            f"the measurement of {fastest} cannot be saved: {error}; set XDG_CACHE_HOME to a folder"
        ) from None
    return fastest


def measurements_file() -> Path:
    """Return the file that measurements are kept in: $XDG_CACHE_HOME, or ~/.cache, /patchcaption/measurements.json."""
    return cache_folder() / "measurements.json"


class _Measurement(BaseModel):
    """One measurement; only ``backend`` is read, the rest is for whoever looks into the file."""

    model_config = ConfigDict(extra="forbid")
    backend: BackendName
    bundle: str
    milliseconds: dict[BackendName, float]


class _Measurements(BaseModel):
    """The file: measurements by `_key`."""

    model_config = ConfigDict(extra="forbid")
    measurements: dict[str, _Measurement]


def _read() -> _Measurements:
    """Return what was measured; nothing if the file is missing or broken: that must not keep a bundle from opening."""
    try:
        return _Measurements.model_validate_json(measurements_file().read_bytes())
    except (OSError, RuntimeError, ValidationError):
        return _Measurements(measurements={})


def _key(bundle: Bundle, precision: Precision, threads: int | None) -> str:
    """Return a hash of all that a measurement depends on."""
    parts = {
        "manifest": bundle.manifest_sha256(),
        "precision": precision,
        "threads": threads,
        "cpu": cpu_name(),
        "cores": usable_cores(),
        "gpu": gpu_name() if BACKENDS[bundle.manifest.backend].device == "cuda" else None,
        "versions": {name: package_version(name) for name in _PACKAGES},
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
