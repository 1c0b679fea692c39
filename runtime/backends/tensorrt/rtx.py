"""TensorRT for RTX: the same interface as TensorRT 11, under version numbers and a package name of its own.

Its builder needs no GPU. It comes as NVIDIA's package `tensorrt-rtx`, or from the package registry alone, as Python
bindings and the libraries that ONNX Runtime's plug-in provider carries.
"""

from __future__ import annotations

import ctypes
import importlib
from importlib.util import find_spec
from pathlib import Path
from typing import cast

from runtime.backends.tensorrt.api import TensorRtApi, TensorRtModule, new_api
from runtime.errors import BackendError

PRODUCT = "TensorRT-RTX"
TENSORRT_RELEASE = (11, 4)
"""The TensorRT whose interface and operators it has."""

_PACKAGE = "tensorrt_rtx"
_BINDINGS, _LIBRARIES = "tensorrt_rtx_bindings", "onnxruntime_ep_nv_tensorrt_rtx"
_LOAD_ORDER = ("libcudart.so.*", "libtensorrt_rtx.so.*", "libtensorrt_onnxparser_rtx.so.*")


def open_tensorrt_rtx() -> TensorRtApi:
    """Import TensorRT for RTX.

    Raises:
        BackendError: it is not installed, or its libraries cannot be loaded.
    """
    try:
        module = importlib.import_module(_PACKAGE if find_spec(_PACKAGE) else _bindings())
    except (ImportError, OSError) as error:
        raise BackendError(
            f"{PRODUCT} cannot be imported ({error}): pip install 'patchcaption[tensorrt-rtx]'"
        ) from None
    return new_api(cast(TensorRtModule, module), PRODUCT, TENSORRT_RELEASE)


def _bindings() -> str:
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
