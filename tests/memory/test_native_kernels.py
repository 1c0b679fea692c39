"""The native kernels: every variant that this machine can run, against float64."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import get_args

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from export.memory.quantization import quantize_rows
from runtime.bundle import MemoryPrecision
from runtime.errors import BackendError, BundleError
from runtime.memory import native_kernels as native
from runtime.memory import torch_kernels as torch_projection
from runtime.memory.rows import ResidualRows, StoredRows

LIBRARY = native.library()
VARIANTS = LIBRARY.variants if LIBRARY else ("not built",)
PRECISIONS = get_args(MemoryPrecision)
TEMPERATURE = 0.01

needs_kernels = pytest.mark.skipif(LIBRARY is None, reason="the native kernels are not built: make native")


def kernels() -> native.Library:
    assert LIBRARY is not None
    return LIBRARY


def random_rows(count: int, width: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    lengths = 1 + torch.rand(count, 1, generator=generator)
    return torch.randn(count, width, generator=generator) * lengths


def stored(rows: Tensor, precision: MemoryPrecision) -> StoredRows:
    made = quantize_rows(rows, precision, torch.Generator().manual_seed(1))
    fine = None if made.fine_scales is None else ResidualRows(made.fine_scales, made.fine)
    return StoredRows(made.stored, 1 / rows.norm(dim=1), made.scales, fine)


def directions_near(rows: Tensor, count: int, noise: float) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    chosen = rows[torch.randint(len(rows), (count,), generator=generator)]
    away = torch.randn(chosen.shape, generator=generator) * noise * chosen.norm(dim=1, keepdim=True)
    return F.normalize(chosen + away / chosen.shape[1] ** 0.5, dim=1)


def by_definition(bank: StoredRows, directions: Tensor, temperature: float = TEMPERATURE) -> Tensor:
    """softmax(cosine / temperature) @ rows, in float64."""
    rows = bank.floats(0, len(bank)).double()
    cosines = (directions.double() @ rows.T) * bank.inverse_norms.double()
    return torch.softmax(cosines / temperature, dim=1) @ rows


@needs_kernels
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(
    ("count", "width", "regions"),
    [(1, 8, 1), (63, 5, 3), (64, 32, 16), (65, 50, 17), (1000, 192, 1), (20_000, 384, 33), (40_000, 64, 70)],
)
def test_every_variant_sums_all_that_is_known_of_the_rows(
    variant: str, precision: MemoryPrecision, count: int, width: int, regions: int
) -> None:
    rows = random_rows(count, width)
    bank, directions = stored(rows, precision), directions_near(rows, regions, noise=3)
    mixed = kernels().project(bank, directions, TEMPERATURE, variant)
    want = by_definition(bank, directions)
    # AMX multiplies numbers of 16 bits of precision, with rows of bytes of 15, the others of 24.
    allowed = 1e-3 if (variant, precision) == ("amx", "int8") else 1e-4
    torch.testing.assert_close(mixed.double(), want, rtol=allowed, atol=allowed * float(want.abs().max()))


@needs_kernels
@pytest.mark.parametrize("variant", [*VARIANTS, "torch"])
@pytest.mark.parametrize("precision", ["fp16", "bf16", "int8"])
@pytest.mark.parametrize("best", [1, 64, 300, 100_000])
def test_the_best_rows_are_summed_as_near_as_known_and_the_others_as_stored(
    variant: str, precision: MemoryPrecision, best: int
) -> None:
    rows = random_rows(20_000, 96)
    bank, directions = stored(rows, precision), directions_near(rows, 20, noise=2)
    if variant == "torch":
        mixed, tail = torch_projection.project_with_refinement(bank, directions, TEMPERATURE, best)
    else:
        mixed, tail = kernels().project_with_refinement(bank, directions, TEMPERATURE, best, variant)
    coarse = StoredRows(bank.stored, bank.inverse_norms, bank.scales).floats(0, len(rows)).double()
    cosines = (directions.double() @ coarse.T) * bank.inverse_norms.double()
    chosen = cosines.topk(min(best, len(rows)), dim=1).indices
    for region in range(len(directions)):
        mine = coarse.clone()
        mine[chosen[region]] = bank.floats(0, len(rows)).double()[chosen[region]]
        logits = (mine @ directions[region].double()) * bank.inverse_norms.double() / TEMPERATURE
        weights = torch.softmax(logits, dim=0)
        want = weights @ mine
        torch.testing.assert_close(mixed[region].double(), want, rtol=1e-4, atol=2e-4 * float(want.abs().max()))
        weights[chosen[region]] = 0
        reach = (weights / bank.inverse_norms).sum() / want.norm()
        assert float(tail[region]) == pytest.approx(float(reach), rel=0.05, abs=1e-3)


@needs_kernels
@pytest.mark.parametrize("variant", VARIANTS)
def test_fine_rows_are_the_same_from_their_file_as_from_memory(variant: str) -> None:
    rows = random_rows(5000, 48)
    bank, directions = stored(rows, "int8"), directions_near(rows, 9, noise=3)
    assert bank.fine is not None
    with tempfile.TemporaryFile(buffering=0) as file:
        file.write(b"before" + bank.fine.numbers.numpy().tobytes())
        file.seek(3)  # where it stands is of no account
        fine = ResidualRows(bank.fine.scales, file=file, offset=len(b"before"))
        from_file = StoredRows(bank.stored, bank.inverse_norms, bank.scales, fine)
        best, _ = kernels().project_with_refinement(from_file, directions, TEMPERATURE, 100, variant)
        whole = kernels().project(from_file, directions, TEMPERATURE, variant)
        torch.testing.assert_close(from_file.floats(7, 99), bank.floats(7, 99), rtol=0, atol=0)
        torch.testing.assert_close(from_file.head(90).floats(7, 99), bank.floats(7, 90), rtol=0, atol=0)
    same, _ = kernels().project_with_refinement(bank, directions, TEMPERATURE, 100, variant)
    torch.testing.assert_close(best, same, rtol=0, atol=0)
    torch.testing.assert_close(whole, kernels().project(bank, directions, TEMPERATURE, variant), rtol=0, atol=0)


@needs_kernels
def test_a_file_of_fine_rows_that_is_too_short_is_an_error(tmp_path: Path) -> None:
    rows = random_rows(500, 48)
    bank = stored(rows, "int8")
    assert bank.fine is not None
    path = tmp_path / "short"
    path.write_bytes(b"x")
    with path.open("rb") as file:
        broken = StoredRows(bank.stored, bank.inverse_norms, bank.scales, ResidualRows(bank.fine.scales, file=file))
        with pytest.raises(BackendError, match="native kernels: the bank's file cannot be read"):
            kernels().project_with_refinement(broken, F.normalize(rows[:2], dim=1), TEMPERATURE, 10)
        with pytest.raises(BundleError, match="short: truncated"):
            broken.floats(0, 10)


@needs_kernels
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_region_without_direction_gets_the_mean_and_one_of_nan_gets_nan(variant: str) -> None:
    rows = random_rows(300, 40)
    directions = torch.zeros(3, 40)
    directions[1, 7] = torch.nan
    directions[2, 3] = 1
    mixed = kernels().project(stored(rows, "fp32"), directions, TEMPERATURE, variant)
    torch.testing.assert_close(mixed[0], rows.mean(dim=0), rtol=1e-3, atol=1e-3)
    assert mixed[1].isnan().all()
    assert mixed[2].isfinite().all()


@needs_kernels
@pytest.mark.parametrize("temperature", [1e-4, 0.01, 1.0, 100.0])
@pytest.mark.parametrize("variant", VARIANTS)
def test_any_temperature_is_the_softmax_of_that_temperature(variant: str, temperature: float) -> None:
    rows = random_rows(3000, 64)
    bank, directions = stored(rows, "fp32"), directions_near(rows, 5, noise=1)
    mixed = kernels().project(bank, directions, temperature, variant)
    want = by_definition(bank, directions, temperature)
    # A logit of 1e4 has an error of 1e4 times that of its cosine.
    allowed = (1e-4 + 3e-6 / temperature) * float(want.abs().max())
    torch.testing.assert_close(mixed.double(), want, rtol=1e-3, atol=allowed)


@needs_kernels
def test_a_variant_that_does_not_exist_is_an_error() -> None:
    rows = random_rows(10, 8)
    with pytest.raises(BackendError, match="this machine has no such variant"):
        kernels().project(stored(rows, "fp32"), rows[:1], TEMPERATURE, "abacus")


def test_a_file_that_is_not_the_library_is_named_with_the_fix(tmp_path: Path) -> None:
    (tmp_path / "text.so").write_text("no library")
    with pytest.raises(BackendError, match=r"text.so: not the native kernels: .*; run make native"):
        native.Library(tmp_path / "text.so")


def test_the_kernels_can_be_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(native.PATH_VARIABLE, "off")
    native.library.cache_clear()
    try:
        assert native.library() is None
    finally:
        native.library.cache_clear()
