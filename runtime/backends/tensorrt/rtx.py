"""TensorRT for RTX: TensorRT 11's interface under a package name and version numbers of its own.

Its builder needs no GPU: a plan serves all GPUs of the compute capabilities that it was built for, which finish
compiling it when they first run it. It comes as NVIDIA's package `tensorrt-rtx`, or from the package registry alone, as
Python bindings and the libraries that ONNX Runtime's plug-in provider carries.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import importlib
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

from runtime.backends.cuda.device import Gpu, driver_version
from runtime.backends.tensorrt.api import TensorRtApi, TensorRtModule, new_api
from runtime.errors import BackendError
from runtime.system.files import write_cache
from runtime.system.user_dirs import cache_file

if TYPE_CHECKING:
    import tensorrt
    import tensorrt_rtx

CAPABILITIES = ("7.5", "8.6", "8.9", "12.0", "12.1")
"""Compute capabilities of the GPUs that it supports: GeForce and RTX from Turing on, and DGX Spark."""
DEFAULT_CAPABILITIES = CAPABILITIES[1:]
"""Turing takes plans of its own."""

_TENSORRT_RELEASE = (11, 4)
"""The TensorRT whose interface and operators it has."""
_PACKAGE = "tensorrt_rtx"
_BINDINGS, _LIBRARIES = "tensorrt_rtx_bindings", "onnxruntime_ep_nv_tensorrt_rtx"
_LOAD_ORDER = ("libcudart.so.*", "libtensorrt_rtx.so.*", "libtensorrt_onnxparser_rtx.so.*")


class _RtxModule(Protocol):
    """The names that TensorRT does not have, with the types of the stub."""

    BuilderFlag: type[tensorrt_rtx.BuilderFlag]
    ComputeCapability: type[tensorrt_rtx.ComputeCapability]
    DynamicShapesKernelSpecializationStrategy: type[tensorrt_rtx.DynamicShapesKernelSpecializationStrategy]


def open_tensorrt_rtx() -> TensorRtApi:
    """Import TensorRT for RTX.

    Raises:
        BackendError: it is not installed, or its libraries cannot be loaded.
    """
    try:
        name = _PACKAGE if find_spec(_PACKAGE) else _load_libraries()
        module = importlib.import_module(name)
    except (ImportError, OSError) as error:
        raise BackendError(
            f"TensorRT-RTX cannot be imported ({error}): pip install 'patchcaption[tensorrt-rtx]', or tensorrt-rtx"
        ) from None
    return new_api(cast(TensorRtModule, module), "tensorrt-rtx", _TENSORRT_RELEASE)


def _load_libraries() -> str:
    """Load the libraries that the bindings are linked with; return the bindings' name."""
    found = find_spec(_LIBRARIES)
    if found is None or not found.submodule_search_locations:
        raise ImportError(f"no module named {_PACKAGE!r} or {_LIBRARIES!r}")
    folder = Path(next(iter(found.submodule_search_locations)))
    for pattern in _LOAD_ORDER:
        library = next(iter(sorted(folder.glob(pattern))), None)
        if library is None:
            raise ImportError(f"no {pattern} in {folder}")
        ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
    return _BINDINGS


def check_supported(api: TensorRtApi, gpu: Gpu) -> None:
    """Raise for a GPU that TensorRT for RTX does not run on; TensorRT itself runs on all."""
    if api.product == "tensorrt-rtx" and gpu.compute_capability not in CAPABILITIES:
        raise BackendError(
            f"tensorrt-rtx: {gpu.name} has compute capability {gpu.compute_capability}, and TensorRT-RTX runs on "
            f"{', '.join(CAPABILITIES)} only; use the backend 'tensorrt' or 'ort-cuda'"
        )


def set_build_targets(api: TensorRtApi, config: tensorrt.IBuilderConfig, compute_capabilities: tuple[str, ...]) -> None:
    """Build for these compute capabilities, and so that the memory of a run is ours and it can be captured."""
    module, rtx_config = cast("_RtxModule", api.module), cast("tensorrt_rtx.IBuilderConfig", config)
    rtx_config.set_flag(module.BuilderFlag.REQUIRE_USER_ALLOCATION)
    rtx_config.num_compute_capabilities = len(compute_capabilities)
    for index, capability in enumerate(compute_capabilities):
        target = getattr(module.ComputeCapability, f"SM{capability.replace('.', '')}")
        api.require(rtx_config.set_compute_capability(target, index), f"building for {capability}")


class RuntimeCache:
    """The code that a GPU compiled of a plan when it first ran it, kept in the user's cache folder.

    Args:
        file: where it is kept; None where it cannot be.
    """

    def __init__(self, api: TensorRtApi, engine: tensorrt.ICudaEngine, file: Path | None) -> None:
        self._file, self._saved = file, b""
        module, rtx_engine = cast("_RtxModule", api.module), cast("tensorrt_rtx.ICudaEngine", engine)
        configs = [api.require(rtx_engine.create_runtime_config(), "configuring a plan") for _ in range(2)]
        self._config, self._config_of_fixed_shapes = configs
        self._cache = api.require(self._config.create_runtime_cache(), "making a cache")
        if file is not None:
            with contextlib.suppress(OSError):
                self._cache.deserialize(file.read_bytes())  # refused, and empty, if it is another environment's
        for config in configs:
            config.set_execution_context_allocation_strategy(api.module.ExecutionContextAllocationStrategy.USER_MANAGED)
            api.require(config.set_runtime_cache(self._cache), "taking a cache")
        eager = module.DynamicShapesKernelSpecializationStrategy.EAGER
        self._config_of_fixed_shapes.dynamic_shapes_kernel_specialization_strategy = eager

    def config(self, fixed_shapes: bool) -> Any:
        """Return how a context is made: with this cache, and without a workspace of its own.

        TensorRT's own engines take an allocation strategy in its place.

        Args:
            fixed_shapes: the context has one set of shapes. Kernels are compiled for them when it first runs, before it
                is captured; by default that happens in the background, and they take effect in some later run.
        """
        return self._config_of_fixed_shapes if fixed_shapes else self._config

    def save(self) -> None:
        """Keep what was compiled so far; without it the next start is only slower."""
        data = bytes(self._cache.serialize() or b"")
        if self._file is not None and data and data != self._saved and write_cache(self._file, data):
            self._saved = data


def can_be_captured(api: TensorRtApi, context: tensorrt.IExecutionContext, stream_handle: int) -> bool:
    """Return whether a context's runs can become part of a CUDA graph now; with TensorRT itself they always can."""
    if api.product != "tensorrt-rtx":
        return True
    return cast("tensorrt_rtx.IExecutionContext", context).is_stream_capturable(stream_handle)


def open_runtime_cache(
    api: TensorRtApi, engine: tensorrt.ICudaEngine, plan_sha256: str, gpu: Gpu
) -> RuntimeCache | None:
    """Return the code that a GPU compiled of a plan so far; None with TensorRT itself, whose plans are compiled."""
    return RuntimeCache(api, engine, runtime_cache_file(plan_sha256, gpu)) if api.product == "tensorrt-rtx" else None


def runtime_cache_file(plan_sha256: str, gpu: Gpu) -> Path | None:
    """Return the cache file of a plan on a GPU and its driver; None where the user has no cache folder."""
    name = hashlib.sha256(f"{plan_sha256} {gpu.name} {gpu.compute_capability} {driver_version()}".encode()).hexdigest()
    return cache_file("tensorrt-rtx", f"{name}.cache")
