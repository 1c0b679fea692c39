"""Memory banks in HDF5, read a block at a time, and written into a bundle as they come."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from export.checkpoint import CheckpointError
from export.memory.bank_file import write_memory
from export.readers.memory_hdf5 import read_memory_bank
from export.text_spaces import TEXT_SPACES, TextSpace, text_space
from tests.export.conftest import whole_bank

SPACE = text_space("tests", 3)


def write_bank(path: Path, embeddings: np.ndarray, captions: list[Any], name: str = "coco_captions") -> Path:
    with h5py.File(path, "w") as file:
        file.create_dataset(f"{name}-embeddings", data=embeddings)
        file.create_dataset(
            f"{name}-text", data=[text.encode() if isinstance(text, str) else text for text in captions]
        )
    return path


def test_rows_without_direction_are_dropped_from_a_bank_with_their_captions(tmp_path: Path) -> None:
    embeddings = np.arange(12, dtype=np.float32).reshape(4, 3)
    embeddings[[0, 2]] = 0
    memory = read_memory_bank(write_bank(tmp_path / "bank.h5", embeddings, ["a", "b", "c", "żółw"]), SPACE)
    rows, captions = whole_bank(memory)
    assert captions == ["b", "żółw"]
    np.testing.assert_array_equal(rows, embeddings[[1, 3]])


def test_a_bank_reaches_the_bundle_in_blocks_as_it_would_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("export.readers.memory_hdf5._BLOCK_BYTES", 4 * 5 * 7)  # 7 rows of width 5
    embeddings = np.random.default_rng(0).standard_normal((30, 5)).astype(np.float32)
    embeddings[[3, 7, 8, 29]] = 0
    embeddings[14:21] = 0  # a whole block
    kept = np.flatnonzero(embeddings.any(axis=1))
    captions = [f'caption "{number}"\nü' for number in range(30)]
    memory = read_memory_bank(
        write_bank(tmp_path / "bank.h5", embeddings, captions, "vg_captions"), replace(SPACE, width=5), False
    )
    assert len(list(memory.blocks())) == 5
    (tmp_path / "bundle").mkdir()
    config = write_memory(memory, tmp_path / "bundle", "test")
    assert (config.num_rows, config.normalize) == (len(kept), False)
    tensors = load_file(tmp_path / "bundle" / config.embeddings)
    np.testing.assert_array_equal(tensors["embeddings"], embeddings[kept])
    torch.testing.assert_close(tensors["inverse_norms"], 1 / tensors["embeddings"].norm(dim=1))
    lines = (tmp_path / "bundle" / config.captions).read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == [captions[number] for number in kept]


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_embeddings_of_any_floating_kind_become_float32(dtype: type, tmp_path: Path) -> None:
    memory = read_memory_bank(write_bank(tmp_path / "bank.h5", np.ones((2, 3), dtype), ["a", "b"]), SPACE)
    assert whole_bank(memory)[0].dtype == torch.float32


NAN = np.array([[1, 1, 1], [1, np.nan, 1]])


@pytest.mark.parametrize(
    ("embeddings", "captions", "message"),
    [
        (np.ones((2, 4)), ["a", "b"], r"coco_captions-embeddings: expected shape \(M, 3\), got \(2, 4\)"),
        (np.ones(3), ["a", "b", "c"], r"expected shape \(M, 3\), got \(3,\)"),
        (np.ones((2, 3), int), ["a", "b"], "expected floating numbers, got int64"),
        (np.ones((2, 3)), ["a"], r"as many captions as embeddings, 2, got \(1,\)"),
        (np.zeros((2, 3)), ["a", "b"], "at least one embedding that is not zero"),
        (NAN, ["a", "b"], "coco_captions-embeddings: expected finite embeddings, got NaN or infinity in row 1"),
        (np.ones((2, 3)), [b"\xff", b"b"], "coco_captions-text: expected texts in utf-8"),
        (np.ones((2, 3)), [1.0, 2.0], "coco_captions-text: expected texts in utf-8"),
        (np.ones((0, 3)), [], "at least one embedding"),
    ],
)
def test_a_bank_that_does_not_fit_is_refused(
    tmp_path: Path, embeddings: np.ndarray, captions: list[Any], message: str
) -> None:
    path = write_bank(tmp_path / "bank.h5", embeddings, captions)
    with pytest.raises(CheckpointError, match=f"bank.h5: .*{message}"):
        whole_bank(read_memory_bank(path, SPACE))


def test_a_file_that_is_no_bank_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.h5").write_text("no")
    with pytest.raises(CheckpointError, match=r"text.h5: not an HDF5 file"):
        read_memory_bank(tmp_path / "text.h5", SPACE)
    with pytest.raises(CheckpointError, match=r"gone.h5: no such file"):
        read_memory_bank(tmp_path / "gone.h5", SPACE)
    path = write_bank(tmp_path / "two.h5", np.ones((1, 3)), ["a"])
    with h5py.File(path, "a") as file:
        file["other-embeddings"], file["other-text"] = np.ones((1, 3)), [b"a"]
    with h5py.File(tmp_path / "none.h5", "w") as file:
        file["images"] = [1]
    with h5py.File(tmp_path / "group.h5", "w") as file:
        file.create_group("x-embeddings")
        file["x-text"] = [b"a"]
    for name, held in (
        ("two", r"\['coco_captions-embeddings', .*'other-text'\]"),
        ("none", r"\['images'\]"),
        ("group", r"\['x-emb"),
    ):
        with pytest.raises(CheckpointError, match=f"{name}.h5: expected one pair of datasets such as .* holds {held}"):
            read_memory_bank(tmp_path / f"{name}.h5", SPACE)


def test_a_damaged_bank_is_refused_by_row(tmp_path: Path) -> None:
    path = tmp_path / "bank.h5"
    embeddings = np.random.default_rng(0).standard_normal((4000, 3)).astype(np.float32)
    with h5py.File(path, "w") as file:
        stored = file.create_dataset("coco_captions-embeddings", data=embeddings, chunks=(500, 3), compression="gzip")
        file["coco_captions-text"] = [b"a"] * 4000
        start = stored.id.get_chunk_info(2).byte_offset
    damaged = bytearray(path.read_bytes())
    damaged[start + 5 : start + 400] = bytes(395)
    path.write_bytes(damaged)
    with pytest.raises(CheckpointError, match="bank.h5: rows from 0 on cannot be read"):
        whole_bank(read_memory_bank(path, SPACE))


def test_rows_of_a_space_are_cut_and_made_unit_as_it_says(tmp_path: Path) -> None:
    embeddings = np.array([[9, 9, 3, 4], [9, 9, 0, 0], [0, 0, 0, 2]], np.float32)
    path = write_bank(tmp_path / "bank.h5", embeddings, ["a", "b", "c"], "any name, it is one pair")
    raw = TextSpace("dinotxt", 2, unit_rows=False, unit_output=True, first_column=2)
    rows, captions = whole_bank(read_memory_bank(path, raw))
    assert captions == ["a", "c"], "a row is looked at for its direction after the cut"
    np.testing.assert_array_equal(rows, [[3, 4], [0, 2]])
    rows, captions = whole_bank(read_memory_bank(path, replace(raw, unit_rows=True)))
    torch.testing.assert_close(rows, torch.tensor([[0.6, 0.8], [0, 1]]))
    assert captions == ["a", "c"]


def test_a_space_says_whether_what_is_projected_gets_unit_length_unless_it_is_said(tmp_path: Path) -> None:
    path = write_bank(tmp_path / "bank.h5", np.ones((1, 3)), ["a"])
    for unit_output in (True, False):
        space = replace(SPACE, unit_output=unit_output)
        assert read_memory_bank(path, space).normalize is unit_output
        assert read_memory_bank(path, space, normalize=not unit_output).normalize is not unit_output


def test_a_bank_of_a_cut_space_has_the_whole_width_of_its_tower(tmp_path: Path) -> None:
    space = TEXT_SPACES["dinotxt-patch"]
    assert read_memory_bank(write_bank(tmp_path / "bank.h5", np.ones((1, 2048)), ["a"]), space).width == 1024
    path = write_bank(tmp_path / "half.h5", np.ones((1, 1024)), ["a"])
    message = r"half.h5: .*: expected shape \(M, 2048\), whose columns from 1024 on are kept, got \(1, 1024\)"
    with pytest.raises(CheckpointError, match=message):
        read_memory_bank(path, space)
