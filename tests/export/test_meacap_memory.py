"""Reads MeaCap's memories."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from export.checkpoint import CheckpointError, MemorySource
from export.readers import meacap_memory
from export.readers.hub import resolve_files
from export.readers.meacap_memory import memory_requests, read_meacap_memory


def written(folder: Path, captions: object, embeddings: object, **options: bool) -> tuple[Path, Path]:
    """The two files of a memory."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "memory_captions.json").write_text(json.dumps(captions))
    torch.save(embeddings, folder / "memory_clip_embeddings.pt", **options)
    return folder / "memory_captions.json", folder / "memory_clip_embeddings.pt"


def whole(memory: MemorySource) -> tuple[torch.Tensor, list[str]]:
    blocks = list(memory.rows())
    return torch.cat([rows for rows, _ in blocks]), [text for _, texts in blocks for text in texts]


@pytest.mark.parametrize("zipped", [True, False])
def test_rows_are_read_block_by_block_at_unit_length(
    zipped: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    embeddings = torch.arange(1.0, 15.0).reshape(7, 2)
    files = written(tmp_path, list("abcdefg"), embeddings, _use_new_zipfile_serialization=zipped)
    monkeypatch.setattr(meacap_memory, "_BLOCK_BYTES", 3 * 8)
    memory = read_meacap_memory(*files, width=2, text_space="t2d-dinov2-b-2025")
    assert [len(rows) for rows, _ in memory.blocks()] == [3, 3, 1]
    rows, captions = whole(memory)
    torch.testing.assert_close(rows, torch.nn.functional.normalize(embeddings))
    assert captions == list("abcdefg")
    assert (memory.width, memory.normalize, memory.unit_rows, memory.text_space) == (
        2,
        False,
        True,
        "t2d-dinov2-b-2025",
    )


def test_embeddings_of_other_precisions_are_read_as_float32(tmp_path: Path) -> None:
    files = written(tmp_path, ["a", "b"], torch.tensor([[3.0, 4.0], [0.0, 0.0]]).half())
    rows, captions = whole(read_meacap_memory(*files, width=2, text_space="t2d-x"))
    assert rows.dtype == torch.float32
    assert captions == ["a"], "a row of norm 0 goes with its caption"


@pytest.mark.parametrize(
    ("captions", "embeddings", "message"),
    [
        (
            ["a"],
            torch.zeros(2, 2),
            r"captions\.json: expected as many captions as .*\.pt has embeddings, 2, got 1",
        ),
        (["a"], torch.zeros(1, 3), r"\.pt: expected floating numbers \(M, 2\), got \(1, 3\) in float32"),
        (["a"], torch.zeros(2), r"\.pt: expected floating numbers \(M, 2\), got \(2,\) in float32"),
        (["a"], torch.zeros(1, 2, dtype=torch.int32), r"\.pt: expected floating numbers .* in int32"),
        (["a"], [1, 2], r"\.pt: expected one tensor, got list"),
        ({"a": 1}, torch.zeros(1, 2), r"memory_captions\.json: expected a list of texts"),
        ([1], torch.zeros(1, 2), r"memory_captions\.json: expected a list of texts"),
    ],
)
def test_files_of_another_layout_are_refused(
    captions: object, embeddings: object, message: str, tmp_path: Path
) -> None:
    files = written(tmp_path, captions, embeddings)
    with pytest.raises(CheckpointError, match=message):
        read_meacap_memory(*files, width=2, text_space="t2d-x")


class Evil:
    """Runs code where it is unpickled."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return print, ("run",)


def test_no_code_of_a_file_is_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = written(tmp_path, ["a"], Evil())
    with pytest.raises(CheckpointError, match=r"memory_clip_embeddings\.pt: not a file of embeddings: "):
        read_meacap_memory(*files, width=2, text_space="t2d-x")
    assert "run" not in capsys.readouterr().out


def test_damaged_and_missing_files_are_named(tmp_path: Path) -> None:
    captions, embeddings = written(tmp_path, ["a"], torch.ones(1, 2))
    contents = embeddings.read_bytes()
    for damaged in (contents[:100], contents[:-50], b"", b"nonsense" * 30):
        embeddings.write_bytes(damaged)
        with pytest.raises(CheckpointError, match="not a file of embeddings: "):
            read_meacap_memory(captions, embeddings, width=2, text_space="t2d-x")
    embeddings.unlink()
    with pytest.raises(CheckpointError, match=r"embeddings\.pt: no such file"):
        read_meacap_memory(captions, embeddings, width=2, text_space="t2d-x")
    captions.write_text("[" * 99_999)
    with pytest.raises(CheckpointError, match=r"captions\.json: cannot be read: "):
        read_meacap_memory(captions, embeddings, width=2, text_space="t2d-x")
    captions.unlink()
    with pytest.raises(CheckpointError, match=r"captions\.json: no such file"):
        read_meacap_memory(captions, embeddings, width=2, text_space="t2d-x")


def test_what_a_memory_lacks_is_named_in_one_message(tmp_path: Path) -> None:
    folder = tmp_path / "memory" / "coco"
    files = written(folder, ["a"], torch.ones(1, 2))
    requests = memory_requests("coco", None)
    with pytest.raises(
        CheckpointError, match=r"missing scene_graphs\.jsonl \(their scene graphs; patchcaption parse-cap"
    ):
        resolve_files(requests, (tmp_path,), "meacap")
    (folder / "scene_graphs.jsonl").write_text("")
    assert resolve_files(requests, (tmp_path,), "meacap") == [*files, folder / "scene_graphs.jsonl"]
    assert resolve_files(requests, (folder,), "meacap") == [*files, folder / "scene_graphs.jsonl"]
