"""The module itself: the names that one version of TensorRT has, and no others."""

from __future__ import annotations

import enum
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from tests.tensorrt_double.building import building_names
from tests.tensorrt_double.contract import Faults, State
from tests.tensorrt_double.running import running_names

_COMMON_FLAGS = [
    *("DEBUG", "GPU_FALLBACK", "REFIT", "DISABLE_TIMING_CACHE", "TF32", "SPARSE_WEIGHTS", "ERROR_ON_TIMING_CACHE_MISS"),
    *("DISABLE_COMPILATION_CACHE", "STRIP_PLAN", "REFIT_IDENTICAL", "WEIGHT_STREAMING", "VERSION_COMPATIBLE"),
    "EXCLUDE_LEAN_RUNTIME",
]
_VERSION_10_FLAGS = [
    *("FP16", "INT8", "BF16", "FP8", "INT4", "OBEY_PRECISION_CONSTRAINTS", "PREFER_PRECISION_CONSTRAINTS"),
    "REJECT_EMPTY_ALGORITHMS",
]
_FLAGS_SINCE_10_13 = ["EDITABLE_TIMING_CACHE", "DISTRIBUTIVE_INDEPENDENCE"]


class Double(ModuleType):
    """The names of `tensorrt` that the double has."""

    state: State
    __version__: str

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"module 'tensorrt' {self.__dict__.get('__version__')} has no attribute {name!r}")


def tensorrt_double(
    version: str = "10.3.0.30", gpu: str = "cpu", faults: Faults | None = None, is_rtx: bool = False
) -> Double:
    """Return a double of one version, to be put into `sys.modules` as "tensorrt" or "tensorrt_rtx"."""
    state = State(version, gpu, faults or Faults(), is_rtx)
    is_11, since_10_13 = is_rtx or state.numbers[0] >= 11, is_rtx or state.numbers[:2] >= (10, 13)
    flags = [*([] if is_11 else _VERSION_10_FLAGS), *_COMMON_FLAGS, *(_FLAGS_SINCE_10_13 if since_10_13 else [])]
    creation = ["STRONGLY_TYPED"] if is_11 else ["EXPLICIT_BATCH", "STRONGLY_TYPED"]
    levels = ["NONE", "AMPERE_PLUS", *(["SAME_COMPUTE_CAPABILITY"] if since_10_13 else [])]
    enums = {
        "BuilderFlag": flags,  # numbered in order, so that the numbers differ from version to version as they do there
        "NetworkDefinitionCreationFlag": creation,
        "HardwareCompatibilityLevel": levels,
        "DataType": ["FLOAT", "HALF", "INT8", "INT32", "BOOL", "UINT8", "FP8", "BF16", "INT64", "INT4"],
        "TensorIOMode": ["NONE", "INPUT", "OUTPUT"],
        "MemoryPoolType": ["WORKSPACE", "DLA_MANAGED_SRAM", "DLA_LOCAL_DRAM", "DLA_GLOBAL_DRAM", "TACTIC_DRAM"],
        "ProfilingVerbosity": ["LAYER_NAMES_ONLY", "NONE", "DETAILED"],
        "DeviceType": ["GPU", "DLA"],
        "ExecutionContextAllocationStrategy": ["STATIC", "ON_PROFILE_CHANGE", "USER_MANAGED"],
        "LayerInformationFormat": ["ONELINE", "JSON"],
    }
    if is_rtx:
        enums["BuilderFlag"] = [*flags, "REQUIRE_USER_ALLOCATION"]
        enums["ComputeCapability"] = ["NONE", "CURRENT", "SM75", "SM80", "SM86", "SM89", "SM120", "SM121"]
    double = Double("tensorrt")
    double.state, double.__version__ = state, version
    double.__spec__ = ModuleSpec("tensorrt", None)  # torch checks whether it could be imported
    for name, members in enums.items():
        setattr(double, name, enum.IntEnum(name, members, start=0))
    for name, value in {**building_names(double, state), **running_names(double, state)}.items():
        setattr(double, name, value)
    return double
