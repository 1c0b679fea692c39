"""Attention in the native kernels: on Intel AMX in less than half of the time of inference runtimes."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import NamedTuple

from runtime.system.native_library import FLOAT_STORAGES, check_status, library_with

WIDTH_MULTIPLE = 32
"""What the width of a head is a multiple of."""


class Heads(ctypes.Structure):
    """patchcaption_heads: the address of queries, keys or values, and the strides of images, heads and tokens."""

    _fields_ = (
        ("address", ctypes.c_void_p),
        ("image_stride", ctypes.c_int64),
        ("head_stride", ctypes.c_int64),
        ("token_stride", ctypes.c_int64),
    )


class QKV(NamedTuple):
    """Queries, keys and values, each (B, heads, T, head width) in any order of the first three axes."""

    queries: Heads
    keys: Heads
    values: Heads


@dataclass(frozen=True)
class AttentionShape:
    """B images, T tokens, the heads and the width of each."""

    images: int
    tokens: int
    heads: int
    head_width: int


class NativeAttention:
    """patchcaption_attend of native/include/patchcaption/attention.h.

    Args:
        library: one that has a variant for this processor.
        threads: the most threads that a call uses.
    """

    def __init__(self, library: ctypes.CDLL, threads: int) -> None:
        heads, size, number, address = ctypes.POINTER(Heads), ctypes.c_int64, ctypes.c_int32, ctypes.c_void_p
        self._attend = library.patchcaption_attend
        self._attend.argtypes = (*[heads] * 3, *[size] * 4, ctypes.c_float, number, number, address)
        self._threads = threads

    def attend(self, qkv: QKV, shape: AttentionShape, scale: float, number_format: str, attended: int) -> None:
        """Compute softmax(scale * queries @ keys') @ values of every head of every image, without a mask.

        Args:
            number_format: of all arrays: "f32" or "bf16".
            attended: the address of the result (B, T, heads, head width).

        Raises:
            BackendError: a shape that it does not take.
            MemoryError: there is too little memory.
        """
        sizes = (shape.images, shape.tokens, shape.heads, shape.head_width)
        options = (scale, FLOAT_STORAGES[number_format], self._threads)
        check_status(self._attend(*qkv, *sizes, *options, attended))


def native_attention(threads: int) -> NativeAttention | None:
    """Return the attention of the native kernels; None where they have none that this processor runs.

    Raises:
        BackendError: there is a native library that cannot be used.
    """
    library = library_with("patchcaption_attention_variant")
    return None if library is None else NativeAttention(library, threads)
