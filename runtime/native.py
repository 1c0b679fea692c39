"""The native kernels, where they were built: `make native` puts the library beside this file.

PATCHCAPTION_NATIVE names another place for it, or is "off".
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from runtime.errors import BackendError
from runtime.stored_rows import StoredRows

PLACE_VARIABLE = "PATCHCAPTION_NATIVE"
_FILE = Path(__file__).with_name("libpatchcaption.so")
_ABI = 2
_STORAGES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2, torch.int8: 3}
_FAILURES = {1: "invalid argument", 3: "this machine has no such variant", 4: "the bank's file cannot be read"}


class _Bank(ctypes.Structure):
    """patchcaption_bank of native/include/patchcaption/projection.h."""

    _fields_ = (
        ("rows", ctypes.c_void_p),
        ("scales", ctypes.c_void_p),
        ("residual", ctypes.c_void_p),
        ("residual_scales", ctypes.c_void_p),
        ("inverse_norms", ctypes.c_void_p),
        ("row_count", ctypes.c_int64),
        ("width", ctypes.c_int64),
        ("storage", ctypes.c_int32),
        ("residual_fd", ctypes.c_int32),
        ("residual_offset", ctypes.c_int64),
    )


class Library:
    """The kernels by their C interface, native/include/patchcaption/projection.h.

    Raises:
        BackendError: it is not there, not a library, or of another version.
    """

    def __init__(self, path: Path) -> None:
        try:
            self._calls = ctypes.CDLL(str(path))
            abi = self._calls.patchcaption_abi()
        except (OSError, AttributeError) as error:
            raise BackendError(f"{path}: not the native kernels: {error}; run make native") from None
        if abi != _ABI:
            raise BackendError(f"{path}: its ABI version is {abi}, expected {_ABI}; run make native")
        self._calls.patchcaption_variant.restype = ctypes.c_char_p
        bank, count, number = ctypes.POINTER(_Bank), ctypes.c_int64, ctypes.c_int32
        floats, real, name = ctypes.c_void_p, ctypes.c_float, ctypes.c_char_p
        self._calls.patchcaption_project.argtypes = (bank, floats, count, real, number, name, floats)
        self._calls.patchcaption_project_with_refinement.argtypes = (
            (bank, floats, count, real, count, number, name, floats, floats)
        )  # fmt: skip

    @property
    def variants(self) -> tuple[str, ...]:
        """What of it this machine can run, the best first."""
        return tuple(self._variants())

    def project(self, rows: StoredRows, directions: Tensor, temperature: float, variant: str | None = None) -> Tensor:
        """softmax(cosine / temperature) @ rows (R, D) for directions (R, D) of length 1, by all that is known."""
        directions, mixed = directions.contiguous(), torch.empty_like(directions)
        self._check(
            self._calls.patchcaption_project(
                _described(rows), directions.data_ptr(), len(directions), temperature, *_how(variant), mixed.data_ptr()
            )
        )
        return _with_nan(directions, mixed)

    def project_best(
        self, rows: StoredRows, directions: Tensor, temperature: float, best: int, variant: str | None = None
    ) -> tuple[Tensor, Tensor]:
        """The same from the rows as stored, but for the ``best`` of each region, which are taken as near as known.

        Returns:
            the sums (R, D), and how much of each is of rows as stored (R,): the sum of weight times row length over the
            other rows, as a share of the sum's length.
        """
        directions, mixed = directions.contiguous(), torch.empty_like(directions)
        tail = torch.empty(len(directions))
        self._check(
            self._calls.patchcaption_project_with_refinement(
                _described(rows),
                directions.data_ptr(),
                len(directions),
                temperature,
                best,
                *_how(variant),
                mixed.data_ptr(),
                tail.data_ptr(),
            )
        )
        return _with_nan(directions, mixed), tail

    def _variants(self) -> Iterator[str]:
        place = 0
        while (name := self._calls.patchcaption_variant(place)) is not None:
            yield name.decode()
            place += 1

    @staticmethod
    def _check(status: int) -> None:
        if status == 2:
            raise MemoryError("native kernels: out of memory")
        if status != 0:
            raise BackendError(f"native kernels: {_FAILURES.get(status, f'status {status}')}")


@lru_cache(maxsize=1)
def library() -> Library | None:
    """The kernels, or None where they were not built or are switched off.

    Raises:
        BackendError: there is a library that cannot be used.
    """
    place = os.environ.get(PLACE_VARIABLE)
    if place == "off" or (place is None and not _FILE.exists()):
        return None
    return Library(Path(place) if place else _FILE)


def _described(rows: StoredRows) -> _Bank:
    fine = rows.fine
    return _Bank(
        rows=rows.stored.data_ptr(),
        scales=None if rows.scales is None else rows.scales.data_ptr(),
        residual=None if fine is None or fine.numbers is None else fine.numbers.data_ptr(),
        residual_scales=None if fine is None else fine.scales.data_ptr(),
        inverse_norms=rows.inverse_norms.data_ptr(),
        row_count=rows.stored.shape[0],
        width=rows.stored.shape[1],
        storage=_STORAGES[rows.stored.dtype],
        residual_fd=-1 if fine is None or fine.file is None else fine.file.fileno(),
        residual_offset=0 if fine is None else fine.offset,
    )


def _how(variant: str | None) -> tuple[int, bytes | None]:
    """As many threads as torch has, and the variant's name."""
    return torch.get_num_threads(), None if variant is None else variant.encode()


def _with_nan(directions: Tensor, mixed: Tensor) -> Tensor:
    """What has no direction has no sum; the kernels compare, and comparing loses NaN."""
    mixed[~directions.isfinite().all(dim=1)] = torch.nan
    return mixed
