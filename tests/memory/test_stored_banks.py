"""Memory banks in fewer bits: what they lose, and that projected vectors hardly feel it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import get_args

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor

from export.checkpoint import CheckpointError, Memory
from export.memory.bank_file import write_memory
from export.memory.quantization import quantize_rows
from runtime.bundle import MemoryConfig, MemoryPrecision
from runtime.memory import bank as memory
from runtime.memory import native_kernels as native
from runtime.memory import rows as stored_rows
from runtime.memory import torch_kernels as torch_projection
from runtime.memory.bank import MemoryBank
from runtime.memory.blocks import Block, stored_blocks
from runtime.memory.rows import ResidualRows, StoredRows

PRECISIONS = get_args(MemoryPrecision)
TEMPERATURE = 0.01
PROMISED = 1e-3
"""The most that a projected unit vector may differ from that of float32 rows, whatever they are stored in."""


def built(rows: Tensor, precision: MemoryPrecision, folder: Path, temperature: float = TEMPERATURE) -> MemoryBank:
    """A bank that went through its files."""
    folder.mkdir(exist_ok=True)
    blocks = rows.split(max(1, len(rows) // 3))
    embeddings = Memory(
        "rows", rows.shape[1], lambda: iter([(block, ["x"] * len(block)) for block in blocks]), True, temperature
    )
    made = write_memory(embeddings, folder, precision)
    fine = folder / made.fine if made.fine else None
    loaded = StoredRows.load(folder / made.embeddings, fine, torch.device("cpu"))
    return MemoryBank(loaded, made, folder / made.captions)


def by_definition(rows: Tensor, vectors: Tensor) -> Tensor:
    """SPEC section 5 in float64."""
    rows, directions = rows.double(), F.normalize(vectors.double(), dim=1)
    weights = torch.softmax((directions @ F.normalize(rows, dim=1).T) / TEMPERATURE, dim=1)
    return F.normalize(weights @ rows, dim=1)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def near_equal() -> Tensor:
    return normal(1, 256) + 0.02 * normal(20_000, 256, seed=1)


def duplicates() -> Tensor:
    """Many copies of a few rows that are about as near to the vectors: the errors of a row must not add up."""
    return F.normalize(normal(1, 256) + 0.5 * normal(6, 256, seed=1), dim=1).repeat(1500, 1)


def all_equal() -> Tensor:
    return normal(1, 256).repeat(2000, 1)


def two_sides() -> Tensor:
    """Rows in pairs that all but cancel each other, so that their sum is short and errors in it are long."""
    side, common = normal(1500, 256), 0.3 * normal(1, 256, seed=1)
    return torch.cat([common + side, common - side])


def one_long_among_short() -> Tensor:
    return normal(4000, 256) * torch.logspace(-3, 3, 4000)[:, None]


def all_different() -> Tensor:
    """Almost at right angles to one another, as equally near as can be: the widest softmax."""
    return normal(20_000, 256)


def fine_in_memory(path: Path, _shape: torch.Size, _device: torch.device) -> ResidualRows:
    """As a GPU has it."""
    tensors = load_file(path)
    return ResidualRows(tensors["scales"], tensors["fine"])


def few_stored_blocks(rows: StoredRows, regions: int) -> Iterator[Block]:
    return stored_blocks(rows, max(700, 2**15 // regions))


@pytest.fixture(params=["native", "torch", "as on a GPU"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """With and without the native kernels, and as on a GPU, where rows are not expanded."""
    if request.param != "native":
        monkeypatch.setattr(native, "library", lambda: None)
        if request.param == "as on a GPU":
            monkeypatch.setattr(stored_rows, "_load_fine", fine_in_memory)
            monkeypatch.setattr(memory, "blocks", few_stored_blocks)
            monkeypatch.setattr(torch_projection, "blocks", few_stored_blocks)
            monkeypatch.setattr(torch_projection, "_ROWS_AT_ONCE", 900)
    elif native.library() is None:
        pytest.skip("the native kernels are not built: make native")
    return str(request.param)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("rows", [near_equal, duplicates, all_equal, two_sides, one_long_among_short, all_different])
@pytest.mark.usefixtures("way")
def test_projected_vectors_are_those_of_float32_to_a_thousandth(
    rows: Callable[[], Tensor], precision: MemoryPrecision, tmp_path: Path
) -> None:
    bank, embeddings = built(rows(), precision, tmp_path), rows()
    vectors = torch.cat(
        [
            F.normalize(embeddings[:20], dim=1) * 3 + 0.1 * normal(20, 256, seed=3),
            normal(20, 256, seed=4),  # near to none in particular
            embeddings.mean(dim=0, keepdim=True),
        ]
    )
    difference = bank.project(vectors).double() - by_definition(embeddings, vectors)
    assert float(difference.norm(dim=1).max()) < (1e-4 if precision == "fp32" else PROMISED)


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
    precision: MemoryPrecision,
    seed: int,
) -> None:
    rows = (normal(1, 192, seed=seed) + spread * normal(count, 192, seed=seed + 1)).repeat(copies, 1)
    bank = built(rows, precision, tmp_path_factory.mktemp("bank"))
    vectors = rows[:5] + noise * normal(len(rows[:5]), 192, seed=seed + 2)
    difference = bank.project(vectors).double() - by_definition(rows, vectors)
    assert float(difference.norm(dim=1).max()) < PROMISED


@pytest.mark.skipif(native.library() is None, reason="the native kernels are not built: make native")
@pytest.mark.parametrize(("rows", "expected"), [(all_different, False), (near_equal, True)])
def test_rows_are_all_summed_anew_only_where_the_best_have_too_little_of_the_weight(
    rows: Callable[[], Tensor], expected: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bank = built(rows(), "int8", tmp_path)
    summed: list[int] = []
    whole = native.Library.project

    def counting(self: native.Library, rows: StoredRows, directions: Tensor, temperature: float) -> Tensor:
        summed.append(len(directions))
        return whole(self, rows, directions, temperature)

    monkeypatch.setattr(native.Library, "project", counting)
    vectors = rows()[:4]
    difference = bank.project(vectors).double() - by_definition(rows(), vectors)
    assert float(difference.norm(dim=1).max()) < PROMISED
    assert bool(summed) == expected


def test_rows_that_would_lose_more_than_promised_are_refused(tmp_path: Path) -> None:
    rows = 0.001 * normal(3000, 256)
    rows[torch.arange(3000), torch.arange(3000) % 256] = 1  # beside it all others round to little
    with pytest.raises(CheckpointError, match="rows: some numbers are so much larger .* int8 would change"):
        built(rows, "int8", tmp_path)


@pytest.mark.parametrize(("precision", "loss"), [("fp32", 0.0), ("fp16", 1e-3), ("bf16", 8e-3), ("int8", 3e-2)])
def test_a_bank_says_the_most_that_rounding_took_from_a_row(
    precision: MemoryPrecision, loss: float, tmp_path: Path
) -> None:
    rows = normal(500, 100)
    bank = built(rows, precision, tmp_path, temperature=0.1)
    stored = bank.rows.stored.float() * (1 if bank.rows.scales is None else bank.rows.scales[:, None])
    taken = ((rows - stored).norm(dim=1) / rows.norm(dim=1)).max()
    assert bank.settings.rounding == pytest.approx(float(taken), rel=1e-4, abs=1e-9)
    assert bank.settings.rounding <= loss
    known = bank.rows.floats(0, 500)
    assert float(((rows - known).norm(dim=1) / rows.norm(dim=1)).max()) < 2e-4


def test_equal_rows_round_differently_and_are_right_on_average() -> None:
    row = normal(1, 64)
    for precision in ("fp16", "bf16", "int8"):
        made = quantize_rows(row.repeat(4000, 1), precision, torch.Generator().manual_seed(0))
        values = made.stored.float() * (1 if made.scales is None else made.scales[:, None])
        errors = values - row
        assert len(torch.unique(values, dim=0)) > 3000
        assert float(errors.mean(dim=0).norm() / errors.norm(dim=1).mean()) < 0.03  # 1 / sqrt(4000) is 0.016


@pytest.mark.parametrize(("precision", "bytes_each"), [("fp32", 4), ("fp16", 2), ("bf16", 2), ("int8", 1)])
def test_rows_take_as_many_bytes_as_they_say(precision: MemoryPrecision, bytes_each: int, tmp_path: Path) -> None:
    built(normal(1001, 33), precision, tmp_path, temperature=0.1)
    tensors = load_file(tmp_path / "memory.safetensors")
    assert tensors["embeddings"].nbytes == 1001 * 33 * bytes_each
    assert (tmp_path / "memory_fine.safetensors").exists() == (precision != "fp32")


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_bank_is_built_the_same_every_time(precision: MemoryPrecision, tmp_path: Path) -> None:
    for name in ("one", "other"):
        built(normal(300, 40), precision, tmp_path / name, temperature=0.1)
    for file in (tmp_path / "one").iterdir():
        assert file.read_bytes() == (tmp_path / "other" / file.name).read_bytes()


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_bank_is_mapped_and_never_whole_in_the_memory_of_its_process(
    precision: MemoryPrecision, tmp_path: Path
) -> None:
    rows = normal(200_000, 64)  # 51 MB of float32
    built(rows, precision, tmp_path, temperature=0.1)
    own_before = own_mib()
    bank = MemoryBank(
        StoredRows.load(
            tmp_path / "memory.safetensors",
            tmp_path / "memory_fine.safetensors" if precision != "fp32" else None,
            torch.device("cpu"),
        ),
        MemoryConfig(embeddings="memory.safetensors", captions="c", rows=len(rows), temperature=0.1, normalize=True),
        tmp_path,
    )
    bank.project(rows[:4])
    assert own_mib() - own_before < 20  # blocks and sums; what is mapped is the system's and shared


def own_mib() -> float:
    """Memory that this process has for itself."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(next(line for line in status.splitlines() if line.startswith("RssAnon")).split()[1]) / 1024


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.usefixtures("way")
def test_the_nearest_captions_are_those_of_float32(precision: MemoryPrecision, tmp_path: Path) -> None:
    rows = normal(40_000, 32)  # more than one block
    bank = built(rows, precision, tmp_path, temperature=0.1)
    vectors = rows[[3, 20_000, 39_999]] + 0.1
    cosines = F.normalize(vectors, dim=1) @ F.normalize(rows, dim=1).T
    found = bank.nearest(vectors, 5)
    for row, matches in zip(cosines, found, strict=True):
        assert [match.similarity for match in matches] == pytest.approx(row.topk(5).values.tolist(), abs=2e-4)
