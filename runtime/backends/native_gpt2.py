"""Steps of a GPT-2 with weights in 8 bits in the native kernels, faster than in inference runtimes.

Shapes: R rows, each one position of a text; E width, H heads, d = E / H, P positions of the cache, V
vocabulary.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from runtime.backends.native_linear import LinearLayer, NativeLayer
from runtime.system.native_library import check_status, library_with, native_variants

CANDIDATES = 8
"""Words of which a step chooses the likeliest by exact logits."""
_VARIANTS = "patchcaption_gpt2_variant"
HEAD_WIDTH_MULTIPLE = 16
"""What d is a multiple of."""


class Gpt2Layers(NamedTuple):
    """The layers of a block: those of inputs begin with a norm, and a GELU (its tanh form) follows the MLP's."""

    attention_inputs: NativeLayer
    attention_outputs: NativeLayer
    mlp_inputs: NativeLayer
    mlp_outputs: NativeLayer


class StepInputs(NamedTuple):
    """Addresses of what a step begins with.

    Attributes:
        states: (R, E) float32, embeddings of words and positions.
        vectors: (R, D) float32, whose projection is added to them; None for none.
    """

    rows: int
    states: int
    vectors: int | None = None


class StepCache(NamedTuple):
    """What a step attends to and adds.

    Attributes:
        is_attended: the entries of the cache that are attended to, (1, P) for all rows or (R, P) bool; each row in one
            piece.
        past: for each block the addresses of its keys and its values, (R, H, P, d) each.
        present: and of the step's own keys and values, (R, H, d) each.
    """

    is_attended: npt.NDArray[np.bool_]
    past: Sequence[int]
    present: Sequence[int]


class _Model(ctypes.Structure):
    """patchcaption_gpt2."""

    _fields_ = (
        ("blocks", ctypes.c_void_p),
        ("block_count", ctypes.c_int64),
        ("head_count", ctypes.c_int64),
        ("vocabulary", ctypes.c_void_p),
        ("embeddings", ctypes.c_void_p),
        ("projection", ctypes.c_void_p),
        ("word_count", ctypes.c_int64),
    )


class _Cache(ctypes.Structure):
    """patchcaption_gpt2_cache."""

    _fields_ = (
        ("position_count", ctypes.c_int64),
        ("is_attended", ctypes.c_void_p),
        ("attended_stride", ctypes.c_int64),
        ("past", ctypes.c_void_p),
        ("present", ctypes.c_void_p),
    )


class _Result(ctypes.Structure):
    """patchcaption_gpt2_result."""

    _fields_ = (("words", ctypes.c_void_p), ("log_probs", ctypes.c_void_p), ("all_log_probs", ctypes.c_void_p))


class HeldGpt2:
    """A GPT-2 with the layers that it is of.

    Args:
        vocabulary: (E, V), from the last norm on.
        embeddings: (V, E), what the vocabulary has in 8 bits.
        word_count: the words with text, the first of V, at least 8.
        projection: (D, E) of vectors, if it has one.
    """

    def __init__(
        self,
        blocks: Sequence[Gpt2Layers],
        heads: int,
        vocabulary: NativeLayer,
        embeddings: npt.NDArray[np.float32],
        word_count: int,
        projection: NativeLayer | None = None,
    ) -> None:
        self.kept = (blocks, vocabulary, projection, np.ascontiguousarray(embeddings, np.float32))
        self._handles = _addresses([layer.handle.value for block in blocks for layer in block])
        self.described = _Model(
            *(ctypes.addressof(self._handles), len(blocks), heads),
            *(vocabulary.handle, self.kept[-1].ctypes.data),
            *(None if projection is None else projection.handle, word_count),
        )


class NativeGpt2:
    """native/include/patchcaption/gpt2.h.

    Args:
        library: the native kernels.
        variant: one that this processor supports.
        threads: the most threads that a call uses.
    """

    def __init__(self, library: ctypes.CDLL, variant: str, threads: int) -> None:
        self.variant = variant
        size, number, address = ctypes.c_int64, ctypes.c_int32, ctypes.c_void_p
        library.patchcaption_gpt2_step.argtypes = (*(address,) * 3, size, address, number, address)
        self._library, self._threads = library, threads

    def hold(self, layer: LinearLayer) -> NativeLayer:
        """Return a layer whose weights the kernels hold.

        Raises:
            BackendError, MemoryError: as of `NativeLayer`.
        """
        return NativeLayer(self._library, layer, self.variant)

    def choose(self, gpt2: HeldGpt2, inputs: StepInputs, cache: StepCache, words: int, log_probs: int) -> None:
        """Compute one position of each row, and choose the likeliest words after it.

        The likeliest is that by logits in float32; in its log-probability those of other words are rounded.

        Args:
            words: the address of (R,) int64.
            log_probs: of (R,) float32.

        Raises:
            BackendError: layers that do not fit each other.
            MemoryError: there is too little memory.
        """
        self._step(gpt2, inputs, cache, _Result(words, log_probs, None))

    def log_probs(self, gpt2: HeldGpt2, inputs: StepInputs, cache: StepCache, all_log_probs: int) -> None:
        """Compute one position of each row, and the log-probability of every word after it.

        Args:
            all_log_probs: the address of (R, words with text) float32.

        Raises:
            BackendError, MemoryError: as of `choose`.
        """
        self._step(gpt2, inputs, cache, _Result(None, None, all_log_probs))

    def _step(self, gpt2: HeldGpt2, inputs: StepInputs, cache: StepCache, result: _Result) -> None:
        mask, past, present = cache.is_attended, _addresses(cache.past), _addresses(cache.present)
        described = _Cache(
            *(mask.shape[1], mask.ctypes.data, mask.strides[0] if len(mask) > 1 else 0),
            *(ctypes.addressof(past), ctypes.addressof(present)),
        )
        arguments = (ctypes.byref(gpt2.described), inputs.states, inputs.vectors, inputs.rows, ctypes.byref(described))
        check_status(self._library.patchcaption_gpt2_step(*arguments, self._threads, ctypes.byref(result)))


def _addresses(addresses: Sequence[int | None]) -> ctypes.Array[ctypes.c_void_p]:
    return (ctypes.c_void_p * len(addresses))(*addresses)


def native_gpt2(threads: int, variant: str | None = None) -> NativeGpt2 | None:
    """Return the steps of the native kernels; None where they have none that this processor runs.

    Args:
        variant: one of `gpt2_variants`; None for the fastest.

    Raises:
        BackendError: there is a native library that cannot be used.
    """
    library = library_with(_VARIANTS)
    return None if library is None else NativeGpt2(library, variant or gpt2_variants()[0], threads)


def gpt2_variants() -> list[str]:
    """Return the variants of steps that this processor supports, the fastest first.

    Raises:
        BackendError: there is a native library that cannot be used.
    """
    return native_variants(_VARIANTS)
