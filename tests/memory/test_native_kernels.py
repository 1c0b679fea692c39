"""The native kernels: every variant that this machine can run, against float64."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import get_args

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from export.memory.quantization import quantize_rows
from runtime.bundle import HeldFile
from runtime.bundle.dtypes import StoragePrecision
from runtime.errors import BackendError, BundleError
from runtime.memory import native_kernels
from runtime.memory.kernels import KernelVariant, ProjectionKernels, projection_kernels
from runtime.memory.native_kernels import NativeKernels
from runtime.memory.rows import ResidualRows, StoredRows
from runtime.memory.torch_kernels import TorchKernels
from runtime.system.native_library import PATH_VARIABLE, native_library, open_library

LIBRARY = native_kernels.library()
VARIANTS = LIBRARY.variants if LIBRARY else ("not built",)
PRECISIONS = get_args(StoragePrecision)
INT8_VARIANTS = ("amx", "avx512bf16", "avx512vnni", "avxvnni", "i8mm", "dotprod")
TEMPERATURE = 0.01
INVALID_ARGUMENT = 1  # of enum patchcaption_status

needs_kernels = pytest.mark.skipif(LIBRARY is None, reason="the native kernels are not built: make native")


def kernels() -> NativeKernels:
    assert LIBRARY is not None
    return LIBRARY


def random_rows(count: int, width: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    lengths = 1 + torch.rand(count, 1, generator=generator)
    return torch.randn(count, width, generator=generator) * lengths


def stored(rows: Tensor, precision: StoragePrecision) -> StoredRows:
    quantized = quantize_rows(rows, precision, torch.Generator().manual_seed(1))
    scales = quantized.residual_scales
    residual = None if scales is None else ResidualRows(scales, quantized.residual)
    return StoredRows(quantized.stored, 1 / rows.norm(dim=1), quantized.scales, residual)


def unit_queries_near(rows: Tensor, count: int, noise: float) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    chosen = rows[torch.randint(len(rows), (count,), generator=generator)]
    offset = torch.randn(chosen.shape, generator=generator) * noise * chosen.norm(dim=1, keepdim=True)
    return F.normalize(chosen + offset / chosen.shape[1] ** 0.5, dim=1)


def project_by_definition(bank: StoredRows, unit_queries: Tensor, temperature: float = TEMPERATURE) -> Tensor:
    """Return softmax(cosine / temperature) @ rows, in float64."""
    rows = bank.floats(0, len(bank)).double()
    cosines = (unit_queries.double() @ rows.T) * bank.inverse_norms.double()
    return torch.softmax(cosines / temperature, dim=1) @ rows


@needs_kernels
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(
    ("count", "width", "regions"),
    [(1, 8, 1), (63, 5, 3), (64, 32, 16), (65, 50, 17), (1000, 192, 1), (20_000, 384, 33), (40_000, 64, 70)],
)
def test_every_variant_sums_the_rows_refined_by_their_residuals(
    variant: str, precision: StoragePrecision, count: int, width: int, regions: int
) -> None:
    rows = random_rows(count, width)
    bank, unit_queries = stored(rows, precision), unit_queries_near(rows, regions, noise=3)
    sums = kernels().project(bank, unit_queries, TEMPERATURE, variant)
    expected = project_by_definition(bank, unit_queries)
    # int8 rows are multiplied by queries of 15 bits, by AMX other rows by queries of 16, by the others of 24.
    tolerance = 1e-3 if precision == "int8" and variant in INT8_VARIANTS else 1e-4
    torch.testing.assert_close(sums.double(), expected, rtol=tolerance, atol=tolerance * float(expected.abs().max()))


def concept_bank(precision: StoragePrecision, count: int, width: int) -> tuple[StoredRows, Tensor]:
    """Return a bank of 40 concepts that have something in common, as captions do, and unit vectors of the concepts."""
    generator = torch.Generator().manual_seed(3)
    concepts = torch.randn(width, generator=generator) + torch.randn(40, width, generator=generator)
    rows = concepts[torch.arange(count) % 40] + torch.randn(count, width, generator=generator)
    return stored(rows, precision), F.normalize(concepts, dim=1)


def projection_kernels_named(variant: str) -> ProjectionKernels:
    return TorchKernels() if variant == "torch" else KernelVariant(kernels(), variant)


def distance_of_directions(sums: Tensor, expected: Tensor) -> float:
    return float((F.normalize(sums.double(), dim=1) - F.normalize(expected, dim=1)).norm(dim=1).max())


@needs_kernels
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("is_narrow", [True, False], ids=["narrow", "wide"])
@pytest.mark.parametrize(("count", "width"), [(1500, 100), (1088, 192), (700, 64)])
def test_few_rows_and_all_rows_are_summed_for_any_number_of_regions(
    variant: str, precision: StoragePrecision, is_narrow: bool, count: int, width: int
) -> None:
    bank, concepts = concept_bank(precision, count, width)
    generator = torch.Generator().manual_seed(4)
    directions = torch.randn(64, width, generator=generator)
    queries = F.normalize(concepts[torch.arange(64) % 40] + directions / width**0.5, dim=1)
    if not is_narrow:
        queries = F.normalize(directions, dim=1)
    temperature = 0.01 if is_narrow else 0.05
    expected = project_by_definition(bank, queries, temperature)
    for regions in (1, 2, 4, 5, 15, 16, 17, 64):
        sums = kernels().project(bank, queries[:regions], temperature, variant)
        assert distance_of_directions(sums, expected[:regions]) < 1e-3, regions  # what a bank promises


@needs_kernels
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("temperature", [0.001, 0.0049, 0.005, 0.1])
def test_int8_rows_keep_the_promise_at_any_temperature(variant: str, temperature: float) -> None:
    bank, concepts = concept_bank("int8", 3000, 64)
    expected = project_by_definition(bank, concepts, temperature)
    assert distance_of_directions(kernels().project(bank, concepts, temperature, variant), expected) < 1e-3


@needs_kernels
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("place", [0, 2999])
def test_the_one_row_that_matters_is_found_wherever_it_is(
    variant: str, precision: StoragePrecision, place: int
) -> None:
    rows = random_rows(3000, 64)
    bank = stored(rows, precision)
    unit_query = F.normalize(bank.floats(place, place + 1), dim=1)
    sums = kernels().project(bank, unit_query, 0.01, variant)
    torch.testing.assert_close(sums, bank.floats(place, place + 1), rtol=1e-3, atol=1e-3)


@needs_kernels
@pytest.mark.parametrize("variant", [*VARIANTS, "torch"])
@pytest.mark.parametrize("precision", ["fp16", "bf16", "int8"])
@pytest.mark.parametrize("top_k", [1, 64, 300, 100_000])
def test_the_nearest_rows_are_refined_and_the_others_are_summed_as_stored(
    variant: str, precision: StoragePrecision, top_k: int
) -> None:
    rows = random_rows(20_000, 96)
    bank, unit_queries = stored(rows, precision), unit_queries_near(rows, 20, noise=2)
    found = projection_kernels_named(variant).project_with_refinement(bank, unit_queries, TEMPERATURE, top_k)
    coarse = StoredRows(bank.stored, bank.inverse_norms, bank.scales).floats(0, len(rows)).double()
    refined, queries = bank.floats(0, len(rows)).double(), unit_queries.double()
    coarse_cosines, cosines = ((queries @ values.T) * bank.inverse_norms.double() for values in (coarse, refined))
    chosen = coarse_cosines.topk(min(top_k, len(rows)), dim=1).indices
    is_chosen = torch.zeros(cosines.shape, dtype=torch.bool).scatter_(1, chosen, True)
    weights = torch.softmax(torch.where(is_chosen, cosines, coarse_cosines) / TEMPERATURE, dim=1)
    others = weights.masked_fill(is_chosen, 0)
    rest = others @ coarse
    expected = weights.masked_fill(~is_chosen, 0) @ refined + rest
    for sums, wanted in zip(found.sums.double(), expected, strict=True):
        torch.testing.assert_close(sums, wanted, rtol=1e-4, atol=2e-4 * float(wanted.abs().max()))
    lengths = expected.norm(dim=1)
    across = rest - (rest * expected).sum(dim=1, keepdim=True) * expected / lengths[:, None] ** 2
    torch.testing.assert_close(found.drifts.double(), across.norm(dim=1) / lengths, rtol=0.05, atol=1e-4)
    errors = (others**2 @ bank.squared_errors.double() * (1 + 1 / (96 * TEMPERATURE**2))).sqrt() / lengths
    # The kernels take what is left from what all rows have, in float32.
    torch.testing.assert_close(found.errors.double(), errors, rtol=0.02, atol=1e-4)


def wide_bank(order: str) -> tuple[Tensor, Tensor]:
    """Return rows of much the same cosine with unit queries, the nearest first, last, or anywhere."""
    rows = random_rows(60_000, 64, seed=5)
    unit_queries = F.normalize(random_rows(1, 64, seed=6) + 0.1 * random_rows(18, 64, seed=7), dim=1)
    nearness = F.normalize(rows, dim=1) @ unit_queries[0]
    orders = {"first": nearness.argsort(descending=True), "last": nearness.argsort(), "anywhere": torch.arange(60_000)}
    return rows[orders[order]], unit_queries


@needs_kernels
@pytest.mark.parametrize("variant", [*VARIANTS, "torch"])
@pytest.mark.parametrize("precision", ["fp16", "bf16", "int8"])
def test_rounding_moves_sums_about_as_far_as_is_told(variant: str, precision: StoragePrecision) -> None:
    rows, unit_queries = wide_bank("anywhere")
    bank = stored(rows, precision)
    found = projection_kernels_named(variant).project_with_refinement(bank, unit_queries, 0.05, 200)
    expected = project_by_definition(bank, unit_queries, 0.05)
    moved = (F.normalize(found.sums.double(), dim=1) - F.normalize(expected, dim=1)).norm(dim=1)
    assert float((moved / found.errors).max()) < 1.3
    if precision == "int8":  # which has steps of one size, as is assumed
        assert float((moved / found.errors).max()) > 0.2


@needs_kernels
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("order", ["first", "last", "anywhere"])
def test_as_few_rows_are_refined_as_leave_the_error_that_is_allowed(variant: str, order: str) -> None:
    rows, unit_queries = wide_bank(order)
    bank, allowed = stored(rows, "int8"), 2e-3
    refine = projection_kernels_named(variant).project_with_refinement
    all_errors = refine(bank, unit_queries, 0.05, 4096).errors
    found = refine(bank, unit_queries, 0.05, 4096, allowed)
    expected = project_by_definition(bank, unit_queries, 0.05)
    moved = (F.normalize(found.sums.double(), dim=1) - F.normalize(expected, dim=1)).norm(dim=1)
    assert bool((moved < 1.3 * found.errors).all())
    if order != "first":  # where the first rows tell nothing of the others, more is left, and told
        assert bool((found.errors <= 1.05 * allowed).all())
        assert bool((found.errors > 2 * all_errors).all())


@needs_kernels
@pytest.mark.parametrize("variant", VARIANTS)
def test_residuals_are_the_same_from_their_file_as_from_memory(variant: str, tmp_path: Path) -> None:
    rows = random_rows(5000, 48)
    bank, unit_queries = stored(rows, "int8"), unit_queries_near(rows, 9, noise=3)
    assert bank.residual is not None
    assert bank.residual.values is not None
    path = tmp_path / "residual"
    path.write_bytes(b"before" + bank.residual.values.numpy().tobytes())
    residual = ResidualRows(bank.residual.scales, file=HeldFile(path), offset=len(b"before"))
    from_file = StoredRows(bank.stored, bank.inverse_norms, bank.scales, residual)
    refined = projection_kernels_named(variant).project_with_refinement(from_file, unit_queries, TEMPERATURE, 100)
    whole = kernels().project(from_file, unit_queries, TEMPERATURE, variant)
    torch.testing.assert_close(from_file.floats(7, 99), bank.floats(7, 99), rtol=0, atol=0)
    torch.testing.assert_close(from_file.head(90).floats(7, 99), bank.floats(7, 90), rtol=0, atol=0)
    expected = projection_kernels_named(variant).project_with_refinement(bank, unit_queries, TEMPERATURE, 100)
    torch.testing.assert_close(refined, expected, rtol=0, atol=0)
    torch.testing.assert_close(whole, kernels().project(bank, unit_queries, TEMPERATURE, variant), rtol=0, atol=0)


@needs_kernels
def test_a_file_of_residuals_that_is_too_short_is_an_error(tmp_path: Path) -> None:
    rows = random_rows(500, 48)
    bank = stored(rows, "int8")
    assert bank.residual is not None
    path = tmp_path / "short"
    path.write_bytes(b"x")
    residual = ResidualRows(bank.residual.scales, file=HeldFile(path))
    broken = StoredRows(bank.stored, bank.inverse_norms, bank.scales, residual)
    for project in (kernels().project, partial(kernels().project_with_refinement, refine_top_k=10)):
        with pytest.raises(BackendError, match="native kernels: the bank's file cannot be read"):
            project(broken, F.normalize(rows[:2], dim=1), TEMPERATURE)
    with pytest.raises(BundleError, match="short: it was changed"):
        broken.floats(0, 10)


@needs_kernels
def test_residuals_that_were_written_to_are_an_error(tmp_path: Path) -> None:
    rows = random_rows(500, 48)
    bank = stored(rows, "int8")
    assert bank.residual is not None
    assert bank.residual.values is not None
    path = tmp_path / "residual"
    path.write_bytes(bank.residual.values.numpy().tobytes())
    held = StoredRows(
        bank.stored, bank.inverse_norms, bank.scales, ResidualRows(bank.residual.scales, file=HeldFile(path))
    )
    kernels().project(held, F.normalize(rows[:2], dim=1), TEMPERATURE)
    os.utime(path, ns=(0, 0))
    with pytest.raises(BundleError, match="residual: it was changed while in use; load the bundle again"):
        kernels().project(held, F.normalize(rows[:2], dim=1), TEMPERATURE)


@needs_kernels
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_region_without_direction_gets_the_mean_and_one_of_nan_gets_nan(variant: str) -> None:
    rows = random_rows(300, 40)
    unit_queries = torch.zeros(3, 40)
    unit_queries[1, 7] = torch.nan
    unit_queries[2, 3] = 1
    sums = kernels().project(stored(rows, "fp32"), unit_queries, TEMPERATURE, variant)
    torch.testing.assert_close(sums[0], rows.mean(dim=0), rtol=1e-3, atol=1e-3)
    assert sums[1].isnan().all()
    assert sums[2].isfinite().all()


@needs_kernels
@pytest.mark.parametrize("temperature", [1e-4, 0.01, 1.0, 100.0])
@pytest.mark.parametrize("variant", VARIANTS)
def test_any_temperature_is_the_softmax_of_that_temperature(variant: str, temperature: float) -> None:
    rows = random_rows(3000, 64)
    bank, unit_queries = stored(rows, "fp32"), unit_queries_near(rows, 5, noise=1)
    sums = kernels().project(bank, unit_queries, temperature, variant)
    expected = project_by_definition(bank, unit_queries, temperature)
    # A logit of 1e4 has an error of 1e4 times that of its cosine.
    tolerance = (1e-4 + 3e-6 / temperature) * float(expected.abs().max())
    torch.testing.assert_close(sums.double(), expected, rtol=1e-3, atol=tolerance)


@needs_kernels
@pytest.mark.parametrize("precision", ["int8", "fp32"])
@pytest.mark.parametrize("top_k", [2**59, 2**60, 2**61, 2**63 - 1, 10**8])
def test_more_refined_rows_than_there_are_is_all_of_them(precision: StoragePrecision, top_k: int) -> None:
    rows = random_rows(300, 40)
    bank, unit_queries = stored(rows, precision), unit_queries_near(rows, 5, noise=1)
    refine = partial(kernels().project_with_refinement, bank, unit_queries, TEMPERATURE)
    for found, expected in zip(refine(top_k), refine(300), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=0)


@needs_kernels
@pytest.mark.parametrize(
    "sizes",
    [
        {"width": 2**62},
        {"width": 2**32},
        {"width": 0},
        {"row_count": 2**32},
        {"row_count": 2**63 - 1},
        {"row_count": -1},
        {"residual_offset": 2**63 - 1},
        {"residual_offset": -1},
        {"storage": 4},
    ],
)
def test_sizes_that_no_bank_has_are_refused_before_anything_is_read(sizes: dict[str, int]) -> None:
    rows = random_rows(10, 8)
    bank = native_kernels._describe_bank(stored(rows, "fp32"))
    for name, size in sizes.items():
        setattr(bank, name, size)
    sums = torch.zeros(1, 8)
    status = kernels()._library.patchcaption_project(
        bank, rows[:1].data_ptr(), 1, TEMPERATURE, 1, None, sums.data_ptr()
    )
    assert status == INVALID_ARGUMENT
    assert not sums.any()


@needs_kernels
def test_more_queries_than_memory_has_room_for_are_refused() -> None:
    rows = random_rows(10, 8)
    bank, sums = native_kernels._describe_bank(stored(rows, "fp32")), torch.zeros(1, 8)
    for count in (-1, 2**24 + 1, 2**62):
        status = kernels()._library.patchcaption_project(
            bank, rows.data_ptr(), count, TEMPERATURE, 1, None, sums.data_ptr()
        )
        assert status == INVALID_ARGUMENT


@needs_kernels
def test_a_variant_that_does_not_exist_is_an_error() -> None:
    rows = random_rows(10, 8)
    with pytest.raises(BackendError, match="this machine has no such variant"):
        kernels().project(stored(rows, "fp32"), rows[:1], TEMPERATURE, "abacus")


def test_a_file_that_is_not_the_library_is_named_with_the_fix(tmp_path: Path) -> None:
    (tmp_path / "text.so").write_text("no library")
    with pytest.raises(BackendError, match=r"text.so: not the native kernels: .*; run make native"):
        open_library(tmp_path / "text.so")


def test_the_kernels_can_be_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PATH_VARIABLE, "off")
    native_library.cache_clear()
    try:
        assert native_kernels.library() is None
        assert isinstance(projection_kernels(torch.device("cpu")), TorchKernels)
    finally:
        native_library.cache_clear()


@needs_kernels
def test_the_native_kernels_are_taken_on_the_cpu_and_those_of_torch_elsewhere() -> None:
    native: ProjectionKernels = projection_kernels(torch.device("cpu"))
    assert isinstance(native, NativeKernels)
    assert native.reads_residual_from_file
    elsewhere = projection_kernels(torch.device("cuda"))
    assert isinstance(elsewhere, TorchKernels)
    assert not elsewhere.reads_residual_from_file
