"""Memory banks in fewer bits: what rounding loses of their rows, and how little of projected vectors."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor

from export.checkpoint import CheckpointError, MemorySource
from export.memory.alike import AlikeRows
from export.memory.bank_file import write_memory
from export.memory.quantization import quantize_rows
from runtime.bundle import HeldFile, MemoryConfig
from runtime.bundle.dtypes import NUMBER_FORMATS, StoragePrecision
from runtime.memory import bank as bank_module
from runtime.memory import native_kernels, torch_kernels
from runtime.memory import rows as rows_module
from runtime.memory.bank import MemoryBank
from runtime.memory.blocks import RowBlock, stored_blocks
from runtime.memory.native_kernels import NativeKernels
from runtime.memory.rows import ResidualRows, StoredRows

PRECISIONS = get_args(StoragePrecision)
TEMPERATURE = 0.01
TEXT_SPACE = "tests"
MAX_ERROR = 1e-3
"""Promised: the largest difference of a projected unit vector from that of float32 rows, however they are stored."""


def build_bank(rows: Tensor, precision: StoragePrecision, folder: Path, temperature: float = TEMPERATURE) -> MemoryBank:
    """Return a bank that went through its files."""
    folder.mkdir(exist_ok=True)
    blocks = rows.split(max(1, len(rows) // 3))
    source = MemorySource(
        source="rows",
        width=rows.shape[1],
        blocks=lambda: iter([(block, ["x"] * len(block)) for block in blocks]),
        normalize=True,
        temperature=temperature,
    )
    config = write_memory(source, folder, TEXT_SPACE, precision)
    residual = HeldFile(folder / config.residual) if config.residual else None
    loaded = StoredRows.load(HeldFile(folder / config.embeddings), residual, torch.device("cpu"))
    return MemoryBank(loaded, config, HeldFile(folder / config.captions))


def project_by_definition(rows: Tensor, vectors: Tensor) -> Tensor:
    """Return vectors projected onto rows by published-system.md, section 5, in float64."""
    rows, unit_queries = rows.double(), F.normalize(vectors.double(), dim=1)
    weights = torch.softmax((unit_queries @ F.normalize(rows, dim=1).T) / TEMPERATURE, dim=1)
    return F.normalize(weights @ rows, dim=1)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def near_equal() -> Tensor:
    return normal(1, 256) + 0.02 * normal(20_000, 256, seed=1)


def duplicates() -> Tensor:
    """Return many copies of a few rows that are about as near to the vectors: a row's errors must not add up."""
    return F.normalize(normal(1, 256) + 0.5 * normal(6, 256, seed=1), dim=1).repeat(1500, 1)


def all_equal() -> Tensor:
    return normal(1, 256).repeat(2000, 1)


def two_sides() -> Tensor:
    """Return pairs of rows that all but cancel each other: their sum is short, and errors in it are long."""
    side, common = normal(1500, 256), 0.3 * normal(1, 256, seed=1)
    return torch.cat([common + side, common - side])


def one_long_among_short() -> Tensor:
    return normal(4000, 256) * torch.logspace(-3, 3, 4000)[:, None]


def all_different() -> Tensor:
    """Return rows almost at right angles to one another, which vectors are equally near to: the widest softmax."""
    return normal(20_000, 256)


def load_residual_into_memory(file: HeldFile, _shape: tuple[int, ...], _device: torch.device) -> ResidualRows:
    """Return residuals as a GPU has them."""
    tensors = load_file(file.path)
    return ResidualRows(tensors["scales"], tensors["residual"])


def small_stored_blocks(rows: StoredRows, num_queries: int) -> Iterator[RowBlock]:
    return stored_blocks(rows, max(700, 2**15 // num_queries))


@pytest.fixture(params=["native", "torch", "as on a GPU"])
def kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The native kernels, those of torch, and those of torch as on a GPU, where rows are not expanded."""
    if request.param != "native":
        monkeypatch.setattr(native_kernels, "library", lambda: None)
        if request.param == "as on a GPU":
            monkeypatch.setattr(rows_module, "_load_residual", load_residual_into_memory)
            monkeypatch.setattr(bank_module, "blocks", small_stored_blocks)
            monkeypatch.setattr(torch_kernels, "blocks", small_stored_blocks)
            monkeypatch.setattr(torch_kernels, "_ROWS_AT_ONCE", 900)
    elif native_kernels.library() is None:
        pytest.skip("the native kernels are not built: make native")
    return str(request.param)


def many_alike_among_others() -> Tensor:
    """Return copies of a row, more than are refined, among rows that are about as near to the vectors."""
    copies = (normal(1, 256) + 0.3 * normal(1, 256, seed=7)).repeat(6144, 1)
    rows = torch.cat([copies, normal(1, 256) + 0.7 * normal(14_000, 256, seed=6)])
    return rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(3))]


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(
    "rows",
    [near_equal, duplicates, all_equal, two_sides, one_long_among_short, all_different, many_alike_among_others],
)
@pytest.mark.usefixtures("kernels")
def test_projected_vectors_are_those_of_float32_to_a_thousandth(
    rows: Callable[[], Tensor], precision: StoragePrecision, tmp_path: Path
) -> None:
    bank, embeddings = build_bank(rows(), precision, tmp_path), rows()
    vectors = torch.cat(
        [
            F.normalize(embeddings[:20], dim=1) * 3 + 0.1 * normal(20, 256, seed=3),
            normal(20, 256, seed=4),  # near to none in particular
            embeddings.mean(dim=0, keepdim=True),
        ]
    )
    difference = bank.project(vectors).double() - project_by_definition(embeddings, vectors)
    assert float(difference.norm(dim=1).max()) < (1e-4 if precision == "fp32" else MAX_ERROR)


@settings(max_examples=40, deadline=None)
@given(
    count=st.integers(1, 3000),
    spread=st.floats(0, 3),
    copies=st.integers(1, 10),
    noise=st.floats(0, 3),
    precision=st.sampled_from(PRECISIONS),
    seed=st.integers(0, 2**16),
)
def test_whatever_the_rows_and_vectors_are(
    tmp_path_factory: pytest.TempPathFactory,
    count: int,
    spread: float,
    copies: int,
    noise: float,
    precision: StoragePrecision,
    seed: int,
) -> None:
    rows = (normal(1, 192, seed=seed) + spread * normal(count, 192, seed=seed + 1)).repeat(copies, 1)
    bank = build_bank(rows, precision, tmp_path_factory.mktemp("bank"))
    vectors = rows[:5] + noise * normal(len(rows[:5]), 192, seed=seed + 2)
    difference = bank.project(vectors).double() - project_by_definition(rows, vectors)
    assert float(difference.norm(dim=1).max()) < MAX_ERROR


@pytest.mark.skipif(native_kernels.library() is None, reason="the native kernels are not built: make native")
@pytest.mark.parametrize(
    ("rows", "is_counted", "expected"),
    [
        (all_different, True, False),
        (all_different, False, True),
        (near_equal, True, True),
        (many_alike_among_others, True, True),
    ],
)
def test_all_rows_are_refined_only_where_the_nearest_are_too_few(
    rows: Callable[[], Tensor],
    is_counted: bool,
    expected: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bank = build_bank(rows(), "int8", tmp_path)
    if not is_counted:  # as in bundles of before: any number of rows may be alike
        bank = replace(bank, config=bank.config.model_copy(update={"max_alike_rows": None}))
    projected: list[int] = []
    project = NativeKernels.project

    def recording(self: NativeKernels, rows: StoredRows, unit_queries: Tensor, temperature: float) -> Tensor:
        projected.append(len(unit_queries))
        return project(self, rows, unit_queries, temperature)

    monkeypatch.setattr(NativeKernels, "project", recording)
    vectors = rows()[:4] + 4 * normal(4, 256, seed=4)
    difference = bank.project(vectors).double() - project_by_definition(rows(), vectors)
    assert float(difference.norm(dim=1).max()) < MAX_ERROR
    assert bool(projected) == expected


def test_rows_that_are_alike_but_for_their_rounding_are_counted() -> None:
    different, row = normal(2000, 384), normal(1, 384, seed=1)
    for alike, expected in ((row.repeat(50, 1), 50), (row + 0.001 * normal(50, 384, seed=2), 45)):
        counted = AlikeRows(384)
        for part in torch.cat([different, alike]).split(300):
            counted.add(part)
        assert expected <= counted.most() <= 50
    topic = AlikeRows(384)
    topic.add(row + 0.5 * normal(2000, 384, seed=3))  # cosines of 0.8: captions of one thing
    assert topic.most() < 10
    assert AlikeRows(384).most() == 0


def test_rows_that_would_lose_more_than_promised_are_refused(tmp_path: Path) -> None:
    rows = 0.001 * normal(3000, 256)
    rows[torch.arange(3000), torch.arange(3000) % 256] = 1  # beside which all others round to little
    with pytest.raises(CheckpointError, match="rows: some numbers are so much larger .* int8 would change"):
        build_bank(rows, "int8", tmp_path)


@pytest.mark.parametrize(("precision", "loss"), [("fp32", 0.0), ("fp16", 1e-3), ("bf16", 8e-3), ("int8", 3e-2)])
def test_a_bank_records_the_largest_rounding_error_of_a_row(
    precision: StoragePrecision, loss: float, tmp_path: Path
) -> None:
    rows = normal(500, 100)
    bank = build_bank(rows, precision, tmp_path, temperature=0.1)
    stored = bank.rows.stored.float() * (1 if bank.rows.scales is None else bank.rows.scales[:, None])
    largest = ((rows - stored).norm(dim=1) / rows.norm(dim=1)).max()
    assert bank.config.max_relative_error == pytest.approx(float(largest), rel=1e-4, abs=1e-9)
    assert bank.config.max_relative_error <= loss
    refined = bank.rows.floats(0, 500)
    assert float(((rows - refined).norm(dim=1) / rows.norm(dim=1)).max()) < 2e-4


def test_equal_rows_round_differently_and_are_right_on_average() -> None:
    row = normal(1, 64)
    for precision in ("fp16", "bf16", "int8"):
        quantized = quantize_rows(row.repeat(4000, 1), precision, torch.Generator().manual_seed(0))
        values = quantized.stored.float() * (1 if quantized.scales is None else quantized.scales[:, None])
        errors = values - row
        assert len(torch.unique(values, dim=0)) > 3000
        assert float(errors.mean(dim=0).norm() / errors.norm(dim=1).mean()) < 0.03  # 1 / sqrt(4000) is 0.016


@pytest.mark.parametrize(("precision", "bytes_each"), [("fp32", 4), ("fp16", 2), ("bf16", 2), ("int8", 1)])
def test_rows_take_as_many_bytes_as_they_say(precision: StoragePrecision, bytes_each: int, tmp_path: Path) -> None:
    build_bank(normal(1001, 33), precision, tmp_path, temperature=0.1)
    tensors = load_file(tmp_path / "memory.safetensors")
    assert tensors["embeddings"].nbytes == 1001 * 33 * bytes_each
    assert (tmp_path / "memory_residual.safetensors").exists() == (precision != "fp32")


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_bank_is_built_the_same_every_time(precision: StoragePrecision, tmp_path: Path) -> None:
    for name in ("one", "other"):
        build_bank(normal(300, 40), precision, tmp_path / name, temperature=0.1)
    for file in (tmp_path / "one").iterdir():
        assert file.read_bytes() == (tmp_path / "other" / file.name).read_bytes()


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_bank_is_in_memory_as_it_is_stored_and_once(precision: StoragePrecision, tmp_path: Path) -> None:
    rows = normal(200_000, 64)  # 51 MB of float32
    folder, stored_mib = tmp_path, rows.numel() * NUMBER_FORMATS[precision].bytes / 2**20
    build_bank(rows, precision, folder, temperature=0.1)
    mib_before = private_mib()
    bank = reopened(folder, precision, temperature=0.1)
    bank.project(rows[:4])
    assert private_mib() - mib_before < stored_mib + 20  # blocks and sums; the residuals stay in their file
    assert str(folder) not in Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace")


def reopened(folder: Path, precision: StoragePrecision, temperature: float) -> MemoryBank:
    """Return the bank of a folder."""
    residual = HeldFile(folder / "memory_residual.safetensors") if precision != "fp32" else None
    stored = StoredRows.load(HeldFile(folder / "memory.safetensors"), residual, torch.device("cpu"))
    captions = HeldFile(folder / "captions.jsonl")
    config = MemoryConfig(
        text_space=TEXT_SPACE,
        embeddings="memory.safetensors",
        captions="captions.jsonl",
        num_rows=len(stored),
        temperature=temperature,
        normalize=True,
    )
    return MemoryBank(stored, config, captions)


def private_mib() -> float:
    """Return the MiB of memory that only this process has."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(next(line for line in status.splitlines() if line.startswith("RssAnon")).split()[1]) / 1024


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.usefixtures("kernels")
def test_the_nearest_captions_are_those_of_float32(precision: StoragePrecision, tmp_path: Path) -> None:
    rows = normal(40_000, 32)  # more than one block
    bank = build_bank(rows, precision, tmp_path, temperature=0.1)
    vectors = rows[[3, 20_000, 39_999]] + 0.1
    cosines = F.normalize(vectors, dim=1) @ F.normalize(rows, dim=1).T
    found = bank.nearest(vectors, 5)
    for row, matches in zip(cosines, found, strict=True):
        assert [match.similarity for match in matches] == pytest.approx(row.topk(5).values.tolist(), abs=2e-4)
