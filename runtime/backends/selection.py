"""What backend="auto" is: what was measured here to be fastest, or where nothing was, the first of a fixed order.

Measurements (`runtime.autotune`) lie in one small file in the user's cache folder. They hold for the bundle, the
machine, the versions and the options they were made with; of anything else they say nothing.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, ValidationError

from runtime.bundle import MANIFEST, Bundle, sha256_of
from runtime.errors import BackendError
from runtime.options import Precision
from runtime.system.files import write_atomically
from runtime.system.machine import cpu_name, package_version, usable_cores
from runtime.system.user_dirs import cache_folder

BackendName: TypeAlias = Literal["cpu", "openvino", "ort-cuda", "ort-tensorrt", "tensorrt"]

_PACKAGES = ("onnxruntime", "onnxruntime-gpu", "openvino")


@dataclass(frozen=True)
class Choice:
    """The backend that "auto" stands for, and why."""

    backend: BackendName
    reason: str


def choose(bundle: Bundle | None = None, precision: Precision = "fp32", threads: int | None = None) -> Choice:
    """What "auto" is for a bundle; without one, nothing is looked up.

    A bundle for a GPU is opened with what it was built for, there or not. Where nothing was measured it is ONNX
    Runtime, "cpu", also with OpenVINO installed: that may be faster, but rounds otherwise, and installing a package
    should not change results. For bfloat16 it is OpenVINO, which alone has it.
    """
    if bundle is not None and bundle.manifest.backend != "cpu":
        return Choice(bundle.manifest.backend, "the bundle was built for it")
    measured = None if bundle is None else _read().choices.get(_key(bundle, precision, threads))
    if measured is not None:
        return Choice(measured.backend, "measured on this machine")
    if precision == "bf16":
        return Choice("openvino", "by order: it alone has bf16")
    return Choice("cpu", "by order: not measured here")


def keep(
    bundle: Bundle, precision: Precision, threads: int | None, milliseconds: Mapping[BackendName, float]
) -> BackendName:
    """Writes down which backend took least time, from now on what "auto" is for this bundle; returns its name.

    Raises:
        BackendError: the file cannot be written.
    """
    fastest = min(milliseconds, key=lambda name: milliseconds[name])
    record = _Record(backend=fastest, bundle=str(bundle.folder.absolute()), milliseconds=dict(milliseconds))
    choices = _Choices(choices=_read().choices | {_key(bundle, precision, threads): record})
    try:
        file = choices_file()
        file.parent.mkdir(parents=True, exist_ok=True)
        with write_atomically(file) as part:
            part.write_text(choices.model_dump_json(indent=2) + "\n", encoding="utf-8")
    except (OSError, RuntimeError) as error:  # RuntimeError: the user has no home
        raise BackendError(f"the choice of {fastest} cannot be kept: {error}; set XDG_CACHE_HOME to a folder") from None
    return fastest


def choices_file() -> Path:
    """Where measurements are kept: $XDG_CACHE_HOME, or ~/.cache, /patchcaption/choices.json."""
    return cache_folder() / "choices.json"


class _Record(BaseModel):
    """One measurement; only ``backend`` is read, the rest is for who looks into the file."""

    model_config = ConfigDict(extra="forbid")
    backend: BackendName
    bundle: str
    milliseconds: dict[BackendName, float]


class _Choices(BaseModel):
    """The file: measurements by `_key`."""

    model_config = ConfigDict(extra="forbid")
    choices: dict[str, _Record]


def _read() -> _Choices:
    """What was measured; nothing if the file is missing or broken, which must not keep a bundle from opening."""
    try:
        return _Choices.model_validate_json(choices_file().read_bytes())
    except (OSError, RuntimeError, ValidationError):
        return _Choices(choices={})


def _key(bundle: Bundle, precision: Precision, threads: int | None) -> str:
    """A hash of all that a measurement depends on."""
    parts = {
        "manifest": sha256_of(bundle.path(MANIFEST)),
        "precision": precision,
        "threads": threads,
        "cpu": cpu_name(),
        "cores": usable_cores(),
        "versions": {name: package_version(name) for name in _PACKAGES},
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
