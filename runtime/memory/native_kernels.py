"""The native projection kernels, where they were built: `make native` and wheels put the library beside this file.

The environment variable PATCHCAPTION_NATIVE names another path of it, or is "off".
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
from runtime.memory.rows import StoredRows
from runtime.system.installation import NATIVE_FIX

PATH_VARIABLE = "PATCHCAPTION_NATIVE"
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


class NativeKernels:
    """Implements `runtime.memory.kernels.ProjectionKernels` by the library's C interface.

    Raises:
        BackendError: the file is not there, not a library, or of another version.
    """

    reads_residual_from_file = True

    def __init__(self, path: Path) -> None:
        try:
            self._library = ctypes.CDLL(str(path))
            abi = self._library.patchcaption_abi()
        except (OSError, AttributeError) as error:
            raise BackendError(f"{path}: not the native kernels: {error}; {NATIVE_FIX}") from None
        if abi != _ABI:
            raise BackendError(f"{path}: its ABI version is {abi}, expected {_ABI}; {NATIVE_FIX}")
        self._library.patchcaption_variant.restype = ctypes.c_char_p
        bank, count, number = ctypes.POINTER(_Bank), ctypes.c_int64, ctypes.c_int32
        floats, real, name = ctypes.c_void_p, ctypes.c_float, ctypes.c_char_p
        self._library.patchcaption_project.argtypes = (bank, floats, count, real, number, name, floats)
        self._library.patchcaption_project_with_refinement.argtypes = (
            (bank, floats, count, real, count, number, name, floats, floats)
        )  # fmt: skip

    @property
    def variants(self) -> tuple[str, ...]:
        """The variants of the kernels that this machine can run, the fastest first."""
        return tuple(self._variants())

    def project(self, rows: StoredRows, unit_queries: Tensor, temperature: float, variant: str | None = None) -> Tensor:
        """Project with a variant; by default the fastest."""
        unit_queries, sums = unit_queries.contiguous(), torch.empty_like(unit_queries)
        status = self._library.patchcaption_project(
            _describe_bank(rows),
            unit_queries.data_ptr(),
            len(unit_queries),
            temperature,
            *_run_options(variant),
            sums.data_ptr(),
        )
        _check(status)
        return _propagate_nan(unit_queries, sums)

    def project_with_refinement(
        self,
        rows: StoredRows,
        unit_queries: Tensor,
        temperature: float,
        refine_top_k: int,
        variant: str | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Project with a variant; by default the fastest."""
        unit_queries, sums = unit_queries.contiguous(), torch.empty_like(unit_queries)
        unrefined_mass = torch.empty(len(unit_queries))
        status = self._library.patchcaption_project_with_refinement(
            _describe_bank(rows),
            unit_queries.data_ptr(),
            len(unit_queries),
            temperature,
            refine_top_k,
            *_run_options(variant),
            sums.data_ptr(),
            unrefined_mass.data_ptr(),
        )
        _check(status)
        return _propagate_nan(unit_queries, sums), unrefined_mass

    def _variants(self) -> Iterator[str]:
        index = 0
        while (name := self._library.patchcaption_variant(index)) is not None:
            yield name.decode()
            index += 1


@lru_cache(maxsize=1)
def library() -> NativeKernels | None:
    """Return the kernels; None where they were not built or are switched off.

    Raises:
        BackendError: there is a library that cannot be used.
    """
    path = os.environ.get(PATH_VARIABLE)
    if path == "off" or (path is None and not _FILE.exists()):
        return None
    return NativeKernels(Path(path) if path else _FILE)


def _check(status: int) -> None:
    if status == 2:
        raise MemoryError("native kernels: out of memory")
    if status != 0:
        raise BackendError(f"native kernels: {_FAILURES.get(status, f'status {status}')}")


def _describe_bank(rows: StoredRows) -> _Bank:
    residual = rows.residual
    if residual is not None and residual.file is not None:
        residual.file.check_unchanged()
    return _Bank(
        rows=rows.stored.data_ptr(),
        scales=None if rows.scales is None else rows.scales.data_ptr(),
        residual=None if residual is None or residual.values is None else residual.values.data_ptr(),
        residual_scales=None if residual is None else residual.scales.data_ptr(),
        inverse_norms=rows.inverse_norms.data_ptr(),
        row_count=rows.stored.shape[0],
        width=rows.stored.shape[1],
        storage=_STORAGES[rows.stored.dtype],
        residual_fd=-1 if residual is None or residual.file is None else residual.file.fileno(),
        residual_offset=0 if residual is None else residual.offset,
    )


def _run_options(variant: str | None) -> tuple[int, bytes | None]:
    """Return as many threads as torch has, and the variant's name."""
    return torch.get_num_threads(), None if variant is None else variant.encode()


def _propagate_nan(unit_queries: Tensor, sums: Tensor) -> Tensor:
    """Propagate NaN inputs, which the kernels' max-comparisons would drop."""
    sums[~unit_queries.isfinite().all(dim=1)] = torch.nan
    return sums
