"""Opens backends by name, and decides what "auto" stands for: a backend, a precision, threads and kernels.

"auto" is what was measured here to be fastest (`runtime.backends.measurements`) among all that agrees with what the
caller has named; where nothing was measured, the first of a fixed order, in the precision of the graphs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

from runtime.backends.base import Backend
from runtime.backends.measurements import MeasuredRun, Measurement, fastest, read_measurement
from runtime.backends.registry import BACKEND_NAMES, BACKENDS, TAKES_BFLOAT16, BackendName, BackendRequest
from runtime.bundle import Bundle, GraphPrecision
from runtime.errors import BackendError
from runtime.options import Precision, PrecisionName, check_threads, is_choice


@dataclass(frozen=True)
class Selection:
    """What a bundle is opened with, and why.

    Attributes:
        reason: why this backend.
        is_measured: whether it was measured here to be the fastest.
        precision: what it computes in.
        threads: of an engine; None leaves it to the backend.
        kernels: of the projection, by name; None for the usual ones.
        milliseconds: what the backbone and the decoder took where it was measured.
    """

    backend: BackendName
    reason: str
    is_measured: bool = False
    precision: Precision = "fp32"
    threads: int | None = None
    kernels: str | None = None
    milliseconds: float | None = None


def open_backend(
    name: str, threads: int | None = None, precision: PrecisionName = "fp32", bundle: Bundle | None = None
) -> Backend:
    """Open a backend of `runtime.backends.registry`, or for "auto" the one that `select_backend` chooses.

    Args:
        precision: what it computes in: "fp32" for the precision of the bundle's graphs, or with OpenVINO "bf16"; "auto"
            for the one that was measured.
        bundle: what it will execute, if that is known: "auto" looks up what was measured for it.

    Raises:
        BackendError: no backend of that name, what it needs is not installed, or it does not have that precision.
        PatchcaptionError: a number of threads that cannot be meant.
    """
    return open_selected(select_backend(bundle, precision, threads, name), bundle)


def open_selected(selection: Selection, bundle: Bundle | None = None) -> Backend:
    """Open the backend of a selection.

    Raises:
        BackendError: what it needs is not installed, or it does not have the precision.
    """
    _check_precision(selection.backend, selection.precision, bundle)
    request = BackendRequest(selection.threads, selection.precision, _graph_precision(bundle))
    return BACKENDS[selection.backend].open(request)


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
    if bundle is not None and precision != "fp32" and in_graphs not in TAKES_BFLOAT16:
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
    bundle: Bundle | None = None,
    precision: PrecisionName = "fp32",
    threads: int | None = None,
    name: str = "auto",
) -> Selection:
    """Return what a bundle is opened with; without one, nothing is looked up.

    For the backend "auto" it is what `patchcaption tune` measured to be fastest among all that agrees with the
    precision, if that is not "auto" too, and with the threads, if they are given; with the kernels that were measured.
    With a backend that is named, only a precision of "auto" is looked up.

    Where nothing was measured, a bundle for a GPU is opened with the backend that it was built for, whether that is
    there or not, and one for CPUs with ONNX Runtime, "cpu", also where OpenVINO is installed: that may be faster, but
    rounds differently, and installing a package should not change results. The precision "auto" is then "fp32". For
    bfloat16 it is OpenVINO, which alone has it.

    Raises:
        BackendError: no backend or precision of that name.
        PatchcaptionError: a number of threads that cannot be meant.
    """
    if not is_choice(name, BACKEND_NAMES):
        raise BackendError(f"backend {name!r}: expected one of {', '.join(map(repr, BACKEND_NAMES))}")
    if threads is not None:
        threads = check_threads("threads", threads)
    if not isinstance(precision, str):
        raise BackendError(f"precision: expected a name such as 'fp32' or 'auto', got {type(precision).__name__}")
    looked_up = bundle if "auto" in (name, precision) else None
    measurement = None if looked_up is None else read_measurement(looked_up)
    if name != "auto":
        return _of_named_backend(cast(BackendName, name), precision, threads, measurement)
    run = _fastest_of(measurement, None, precision, threads)
    if measurement is None or run is None:
        return _by_order(bundle, "fp32" if precision == "auto" else precision, threads)
    return Selection(
        run.backend,
        "measured on this machine",
        is_measured=True,
        precision=run.precision,
        threads=run.threads,
        kernels=measurement.kernels,
        milliseconds=run.milliseconds,
    )


def _of_named_backend(
    name: BackendName, precision: PrecisionName, threads: int | None, measurement: Measurement | None
) -> Selection:
    run = _fastest_of(measurement, name, "auto", threads) if precision == "auto" else None
    unmeasured: Precision = "fp32" if precision == "auto" else precision
    return Selection(name, "asked for", precision=unmeasured if run is None else run.precision, threads=threads)


def _fastest_of(
    measurement: Measurement | None, backend: BackendName | None, precision: PrecisionName, threads: int | None
) -> MeasuredRun | None:
    """Return the fastest run that agrees with float32 and with what is asked for; None if there is none."""
    return fastest(
        [
            run
            for run in ([] if measurement is None else measurement.agreeing())
            if backend in (None, run.backend)
            and precision in ("auto", run.precision)
            and threads in (None, run.threads)
        ]
    )


def _by_order(bundle: Bundle | None, precision: Precision, threads: int | None) -> Selection:
    if bundle is not None and bundle.manifest.backend != "cpu":
        return Selection(bundle.manifest.backend, "the bundle was built for it", precision=precision, threads=threads)
    if precision == "bf16":
        return Selection("openvino", "by order: it alone has bf16", precision=precision, threads=threads)
    return Selection("cpu", "by order: not measured here", precision=precision, threads=threads)
