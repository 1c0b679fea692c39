"""The module itself: the names that one version of TensorRT has, and no others."""

from __future__ import annotations

from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from tests.tensorrt_double.bindings import enumeration, numbered, real_tensorrt
from tests.tensorrt_double.building import building_names
from tests.tensorrt_double.contract import Faults, State
from tests.tensorrt_double.running import running_names

_OF_10 = {  # from the documentation of 10.3; numbers differ from version to version, as they do there
    "BuilderFlag": [
        *("FP16", "INT8", "DEBUG", "GPU_FALLBACK", "REFIT", "DISABLE_TIMING_CACHE", "TF32", "SPARSE_WEIGHTS"),
        *("ERROR_ON_TIMING_CACHE_MISS", "DISABLE_COMPILATION_CACHE", "STRIP_PLAN", "REFIT_IDENTICAL"),
        *("WEIGHT_STREAMING", "VERSION_COMPATIBLE", "EXCLUDE_LEAN_RUNTIME", "BF16", "FP8", "INT4"),
        *("OBEY_PRECISION_CONSTRAINTS", "PREFER_PRECISION_CONSTRAINTS", "REJECT_EMPTY_ALGORITHMS"),
    ],
    "NetworkDefinitionCreationFlag": ["EXPLICIT_BATCH", "STRONGLY_TYPED"],
    "HardwareCompatibilityLevel": ["NONE", "AMPERE_PLUS"],
    "DataType": ["FLOAT", "HALF", "INT8", "INT32", "BOOL", "UINT8", "FP8", "BF16", "INT64", "INT4"],
    "TensorIOMode": ["NONE", "INPUT", "OUTPUT"],
    "MemoryPoolType": ["WORKSPACE", "DLA_MANAGED_SRAM", "DLA_LOCAL_DRAM", "DLA_GLOBAL_DRAM", "TACTIC_DRAM"],
    "ProfilingVerbosity": ["LAYER_NAMES_ONLY", "NONE", "DETAILED"],
    "DeviceType": ["GPU", "DLA"],
    "ExecutionContextAllocationStrategy": ["STATIC", "ON_PROFILE_CHANGE", "USER_MANAGED"],
    "LayerInformationFormat": ["ONELINE", "JSON"],
}
_SINCE_10_13 = {  # from the documentation too
    "BuilderFlag": ["EDITABLE_TIMING_CACHE", "DISTRIBUTIVE_INDEPENDENCE"],
    "HardwareCompatibilityLevel": ["SAME_COMPUTE_CAPABILITY"],
}
_ONLY_RTX = {"REQUIRE_USER_ALLOCATION"}
_ENUMERATIONS_OF_RTX = ("ComputeCapability", "DynamicShapesKernelSpecializationStrategy")


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
    double = Double("tensorrt")
    double.state, double.__version__ = state, version
    double.__spec__ = ModuleSpec("tensorrt", None)  # torch checks whether it could be imported
    for name, members in _enumerations(state).items():
        setattr(double, name, enumeration(name, members))
    for name, value in {**building_names(double, state), **running_names(double, state)}.items():
        setattr(double, name, value)
    return double


def _enumerations(state: State) -> dict[str, dict[str, int]]:
    """Return the members of all enumerations: from 11 on NVIDIA's own, with their numbers."""
    if state.numbers[0] >= 11 or state.is_rtx:
        names = [*_OF_10, *(_ENUMERATIONS_OF_RTX if state.is_rtx else ())]
        dropped = set() if state.is_rtx else _ONLY_RTX
        real = {name: getattr(real_tensorrt(), name).__members__ for name in names}
        return {name: {one: int(real[name][one]) for one in real[name] if one not in dropped} for name in names}
    added = _SINCE_10_13 if state.numbers[:2] >= (10, 13) else {}
    return {name: numbered([*members, *added.get(name, [])]) for name, members in _OF_10.items()}
