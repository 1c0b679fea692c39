"""The native projection kernels, where the library was built."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator

import torch
from torch import Tensor

from runtime.memory.rows import StoredRows
from runtime.memory.sums import RefinedSums
from runtime.system.native_library import check_status, native_library

_STORAGES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2, torch.int8: 3}


class _Bank(ctypes.Structure):
    """patchcaption_bank of native/include/patchcaption/projection.h."""

    _fields_ = (
        ("rows", ctypes.c_void_p),
        ("scales", ctypes.c_void_p),
        ("residual", ctypes.c_void_p),
        ("residual_scales", ctypes.c_void_p),
        ("inverse_norms", ctypes.c_void_p),
        ("squared_errors", ctypes.c_void_p),
        ("row_count", ctypes.c_int64),
        ("width", ctypes.c_int64),
        ("storage", ctypes.c_int32),
        ("residual_fd", ctypes.c_int32),
        ("residual_offset", ctypes.c_int64),
    )


class NativeKernels:
    """Implements `runtime.memory.kernels.ProjectionKernels` by the library's C interface."""

    reads_residual_from_file = True

    def __init__(self, native: ctypes.CDLL) -> None:
        self._library = native
        self._library.patchcaption_variant.restype = ctypes.c_char_p
        bank, count, number = ctypes.POINTER(_Bank), ctypes.c_int64, ctypes.c_int32
        floats, real, name = ctypes.c_void_p, ctypes.c_float, ctypes.c_char_p
        self._library.patchcaption_project.argtypes = (bank, floats, count, real, number, name, floats)
        self._library.patchcaption_project_with_refinement.argtypes = (
            (bank, floats, count, real, count, real, number, name, floats, floats, floats)
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
        check_status(status)
        return _propagate_nan(unit_queries, sums)

    def project_with_refinement(
        self,
        rows: StoredRows,
        unit_queries: Tensor,
        temperature: float,
        refine_top_k: int,
        max_error: float = 0.0,
        variant: str | None = None,
    ) -> RefinedSums:
        """Project with a variant; by default the fastest."""
        unit_queries, sums = unit_queries.contiguous(), torch.empty_like(unit_queries)
        errors, drifts = torch.empty(len(unit_queries)), torch.empty(len(unit_queries))
        status = self._library.patchcaption_project_with_refinement(
            _describe_bank(rows),
            unit_queries.data_ptr(),
            len(unit_queries),
            temperature,
            refine_top_k,
            max_error,
            *_run_options(variant),
            sums.data_ptr(),
            errors.data_ptr(),
            drifts.data_ptr(),
        )
        check_status(status)
        return RefinedSums(_propagate_nan(unit_queries, sums), errors, drifts)

    def _variants(self) -> Iterator[str]:
        index = 0
        while (name := self._library.patchcaption_variant(index)) is not None:
            yield name.decode()
            index += 1


def library() -> NativeKernels | None:
    """Return the kernels; None where they were not built or are switched off.

    Raises:
        BackendError: there is a library that cannot be used.
    """
    native = native_library()
    return None if native is None else NativeKernels(native)


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
        squared_errors=None if residual is None else rows.squared_errors.data_ptr(),
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
