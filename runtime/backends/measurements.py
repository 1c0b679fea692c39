"""The file of measurements: what `patchcaption tune` found out about bundles on this machine.

It is one small file in the user's cache folder. A measurement holds for the bundle, the machine and the versions that
it was made with, and for nothing else.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from runtime.backends.cuda.device import gpu_name
from runtime.backends.registry import BACKENDS, BackendName
from runtime.bundle import Bundle
from runtime.errors import BackendError
from runtime.options import Precision
from runtime.system.files import write_atomically
from runtime.system.machine import cpu_name, package_version, usable_cores
from runtime.system.user_dirs import cache_folder, make_private

NEARLY_EQUAL = 1.05
"""Times that differ by less than this factor are taken for equal: a machine that does other work too varies as much."""

_PACKAGES = ("onnxruntime", "onnxruntime-gpu", "openvino", "tensorrt", "tensorrt-rtx", "tensorrt-rtx-cu12-bindings")


class HasMilliseconds(Protocol):
    """Anything that took time."""

    @property
    def milliseconds(self) -> float:
        """The time."""
        ...


TimedT = TypeVar("TimedT", bound=HasMilliseconds)


class MeasuredRun(BaseModel):
    """One way to run a bundle, and what it takes.

    Attributes:
        threads: of an engine; None for as many as the backend takes by itself.
        milliseconds: of the backbone and the decoder together.
        agreement: the share of captions that are those of float32, in 0..1.
    """

    model_config = ConfigDict(extra="forbid")
    backend: BackendName
    precision: Precision
    threads: int | None = Field(default=None, ge=1)
    milliseconds: float = Field(gt=0)
    agreement: float = Field(default=1.0, ge=0, le=1)


class Measurement(BaseModel):
    """What was measured of one bundle.

    Attributes:
        bundle: its folder, for whoever looks into the file.
        runs: in the order of preference: of those that take nearly equal time, the first is taken.
        min_agreement: the agreement that a run must have to be chosen.
        kernels: of the projection, by name, where others than the usual ones are faster.
    """

    model_config = ConfigDict(extra="forbid")
    bundle: str
    runs: list[MeasuredRun]
    min_agreement: float = Field(default=0.0, ge=0, le=1)
    kernels: str | None = None

    def agreeing(self) -> list[MeasuredRun]:
        """Return the runs whose captions agree with those of float32, in the order of preference."""
        return [run for run in self.runs if run.agreement >= self.min_agreement]

    def has_tried(self, precision: Precision) -> bool:
        """Return whether a precision was measured, chosen or not."""
        return any(run.precision == precision for run in self.runs)


def fastest(runs: Sequence[TimedT], nearly_equal: float = NEARLY_EQUAL) -> TimedT | None:
    """Return the first of the runs that take about as little time as the fastest of them; None of none."""
    least = min((run.milliseconds for run in runs), default=0.0)
    return next((run for run in runs if run.milliseconds <= nearly_equal * least), None)


def read_measurement(bundle: Bundle) -> Measurement | None:
    """Return what was measured of a bundle on this machine with these versions; None if nothing was."""
    return _read().measurements.get(_key(bundle))


def save_measurement(bundle: Bundle, measurement: Measurement) -> None:
    """Keep what was measured of a bundle, in place of what was measured before.

    Raises:
        BackendError: the file cannot be written.
    """
    kept = _Measurements(measurements=_read().measurements | {_key(bundle): measurement})
    try:
        file = measurements_file()
        make_private(file.parent)
        with write_atomically(file) as part:
            part.write_text(kept.model_dump_json(indent=2) + "\n", encoding="utf-8")
    except (OSError, RuntimeError) as error:  # RuntimeError: the user has no home
        raise BackendError(
            f"the measurement of {bundle.folder} cannot be saved: {error}; set XDG_CACHE_HOME to a folder"
        ) from None


def measurements_file() -> Path:
    """Return the file that measurements are kept in: $XDG_CACHE_HOME, or ~/.cache, /patchcaption/measurements.json."""
    return cache_folder() / "measurements.json"


class _Measurements(BaseModel):
    """The file: measurements by `_key`."""

    model_config = ConfigDict(extra="forbid")
    measurements: dict[str, Measurement]


def _read() -> _Measurements:
    """Return what was measured; nothing if the file is missing or broken: that must not keep a bundle from opening."""
    try:
        return _Measurements.model_validate_json(measurements_file().read_bytes())
    except (OSError, RuntimeError, ValidationError):
        return _Measurements(measurements={})


def _key(bundle: Bundle) -> str:
    """Return a hash of all that a measurement depends on."""
    parts = {
        "manifest": bundle.manifest_sha256(),
        "cpu": cpu_name(),
        "cores": usable_cores(),
        "gpu": gpu_name() if BACKENDS[bundle.manifest.backend].device == "cuda" else None,
        "versions": {name: package_version(name) for name in _PACKAGES},
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
