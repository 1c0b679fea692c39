"""Linear layers in 8 bits in the native kernels: on Intel AMX faster than in inference runtimes.

Shapes: R rows, K inputs and N outputs of a layer.
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from runtime.errors import BackendError
from runtime.system.native_library import FLOAT_STORAGES, check_status, library_with, native_variants

INPUT_MULTIPLE = 64
"""What the inputs of a layer are a multiple of."""
Floats = npt.NDArray[np.float32]
_NONE = np.empty(0, np.float32)


class Norm(NamedTuple):
    """A LayerNorm: weights and biases (K,)."""

    weights: Floats
    biases: Floats
    epsilon: float


@dataclass(frozen=True)
class LinearLayer:
    """gelu(round(norm(x) / input_scale) @ weights * scales + biases), each of norm and gelu optional.

    Attributes:
        weights: (K, N) int8.
        scales: (N,) of the products of rounded inputs and weights; (K / 64, N) of weights alone.
        biases: (N,).
        input_scale: 0 for inputs that are rounded to bfloat16 only, which `NativeGpt2` alone computes.
    """

    weights: npt.NDArray[np.int8]
    scales: Floats
    biases: Floats
    input_scale: float
    norm: Norm | None = None
    has_gelu: bool = False


class _Layer(ctypes.Structure):
    """patchcaption_layer."""

    _fields_ = (
        ("input_width", ctypes.c_int64),
        ("output_width", ctypes.c_int64),
        ("weights", ctypes.c_void_p),
        ("scales", ctypes.c_void_p),
        ("biases", ctypes.c_void_p),
        ("input_scale", ctypes.c_float),
        ("norm_weights", ctypes.c_void_p),
        ("norm_biases", ctypes.c_void_p),
        ("norm_epsilon", ctypes.c_float),
        ("has_gelu", ctypes.c_int32),
    )


class NativeLayer:
    """A layer as the kernels hold it, until the object is freed.

    Args:
        variant: of the kernels that will use it.

    Raises:
        BackendError: a shape that they do not take.
        MemoryError: there is too little memory.
    """

    def __init__(self, library: ctypes.CDLL, layer: LinearLayer, variant: str) -> None:
        self.output_width = layer.weights.shape[1]
        self.handle = ctypes.c_void_p()
        weights = np.ascontiguousarray(layer.weights, np.int8)
        inputs, outputs = weights.shape
        expected = (outputs,) if layer.input_scale > 0 else (inputs // INPUT_MULTIPLE, outputs)
        if layer.scales.shape != expected or layer.biases.shape != (outputs,):
            raise BackendError(
                f"native kernels: invalid argument: scales {layer.scales.shape} of weights {weights.shape}"
            )
        norm = layer.norm or Norm(_NONE, _NONE, 0.0)
        vectors = (layer.scales, layer.biases, norm.weights, norm.biases)
        scales, biases, norm_weights, norm_biases = (np.ascontiguousarray(one, np.float32) for one in vectors)
        described = _Layer(
            *weights.shape,
            *(weights.ctypes.data, scales.ctypes.data, biases.ctypes.data, layer.input_scale),
            *((norm_weights.ctypes.data, norm_biases.ctypes.data) if layer.norm else (None, None)),
            *(norm.epsilon, layer.has_gelu),
        )
        create, free = library.patchcaption_linear_create, library.patchcaption_linear_free
        create.argtypes = (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)
        free.argtypes, free.restype = (ctypes.c_void_p,), None
        check_status(create(ctypes.byref(described), variant.encode(), ctypes.byref(self.handle)))
        freeing = weakref.finalize(self, free, self.handle)
        freeing.atexit = False  # a program may end while a thread computes


class NativeLinear:
    """native/include/patchcaption/linear.h.

    Args:
        library: the native kernels.
        variant: one that this processor supports.
        threads: the most threads that a call uses.
    """

    def __init__(self, library: ctypes.CDLL, variant: str, threads: int) -> None:
        size, number, address = ctypes.c_int64, ctypes.c_int32, ctypes.c_void_p
        library.patchcaption_linear_run.argtypes = (
            *(address, size),
            *(address, address, size),
            *(number,) * 2,
            address,
        )
        self._library, self._variant, self._threads = library, variant, threads

    def hold(self, layer: LinearLayer) -> NativeLayer:
        """Return a layer whose weights the kernels hold.

        Raises:
            BackendError: a shape that they do not take.
            MemoryError: there is too little memory.
        """
        return NativeLayer(self._library, layer, self._variant)

    def run(
        self, layers: Sequence[NativeLayer], inputs: int, residual: int, rows: int, number_format: str, outputs: int
    ) -> None:
        """Compute one layer or two, the second of the outputs of the first.

        Args:
            inputs: the address of (R, K).
            residual: of what is added to the outputs (R, N); 0 for nothing.
            number_format: of all arrays: "f32" or "bf16".
            outputs: of the result (R, N).

        Raises:
            MemoryError: there is too little memory.
        """
        handles = (ctypes.c_void_p * len(layers))(*(layer.handle for layer in layers))
        options = (rows, FLOAT_STORAGES[number_format], self._threads)
        check_status(
            self._library.patchcaption_linear_run(handles, len(layers), inputs, residual or None, *options, outputs)
        )


def native_linear(threads: int) -> NativeLinear | None:
    """Return the linear layers of the native kernels; None where they have none that this processor runs.

    Raises:
        BackendError: there is a native library that cannot be used.
    """
    variants = "patchcaption_linear_variant"
    library = library_with(variants)
    return None if library is None else NativeLinear(library, native_variants(variants)[0], threads)
