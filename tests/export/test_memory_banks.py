"""Memory banks: read from HDF5 a block at a time, and made of captions through CLIP's text tower and Talk2DINO."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from export import build_memory_bank as memory_bank
from export.build_memory_bank import open_embedder, read_captions
from export.checkpoint import CheckpointError, Memory
from export.demo import scenes
from export.memory.bank_file import write_memory
from export.readers import DEMO_CONFIG
from export.readers.memory_hdf5 import read_memory_bank
from export.readers.talk2dino import read_talk2dino

DEMO = DEMO_CONFIG.parent


def write_bank(path: Path, embeddings: np.ndarray, captions: list[Any], name: str = "coco_captions") -> Path:
    with h5py.File(path, "w") as file:
        file.create_dataset(f"{name}-embeddings", data=embeddings)
        file.create_dataset(
            f"{name}-text", data=[text.encode() if isinstance(text, str) else text for text in captions]
        )
    return path


def whole(memory: Memory) -> tuple[torch.Tensor, list[str]]:
    blocks = list(memory.rows())
    return torch.cat([embeddings for embeddings, _ in blocks]), [text for _, texts in blocks for text in texts]


def test_rows_without_direction_are_dropped_from_a_bank_with_their_captions(tmp_path: Path) -> None:
    embeddings = np.arange(12, dtype=np.float32).reshape(4, 3)
    embeddings[[0, 2]] = 0
    memory = read_memory_bank(write_bank(tmp_path / "bank.h5", embeddings, ["a", "b", "c", "żółw"]), 3, True)
    rows, captions = whole(memory)
    assert captions == ["b", "żółw"]
    np.testing.assert_array_equal(rows, embeddings[[1, 3]])


def test_a_bank_reaches_the_bundle_in_blocks_as_it_would_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("export.readers.memory_hdf5._BLOCK_BYTES", 4 * 5 * 7)  # 7 rows of width 5
    embeddings = np.random.default_rng(0).standard_normal((30, 5)).astype(np.float32)
    embeddings[[3, 7, 8, 29]] = 0
    embeddings[14:21] = 0  # a whole block
    kept = np.flatnonzero(embeddings.any(axis=1))
    captions = [f'caption "{number}"\nü' for number in range(30)]
    memory = read_memory_bank(write_bank(tmp_path / "bank.h5", embeddings, captions, "vg_captions"), 5, False)
    assert len(list(memory.blocks())) == 5
    (tmp_path / "bundle").mkdir()
    settings = write_memory(memory, tmp_path / "bundle")
    assert (settings.rows, settings.normalize) == (len(kept), False)
    tensors = load_file(tmp_path / "bundle" / settings.embeddings)
    np.testing.assert_array_equal(tensors["embeddings"], embeddings[kept])
    torch.testing.assert_close(tensors["inverse_norms"], 1 / tensors["embeddings"].norm(dim=1))
    lines = (tmp_path / "bundle" / settings.captions).read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == [captions[number] for number in kept]


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_embeddings_of_any_floating_kind_become_float32(dtype: type, tmp_path: Path) -> None:
    memory = read_memory_bank(write_bank(tmp_path / "bank.h5", np.ones((2, 3), dtype), ["a", "b"]), 3, True)
    assert whole(memory)[0].dtype == torch.float32


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
        whole(read_memory_bank(path, width=3, normalize=True))


def test_a_file_that_is_no_bank_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.h5").write_text("no")
    with pytest.raises(CheckpointError, match=r"text.h5: not an HDF5 file"):
        read_memory_bank(tmp_path / "text.h5", 3, True)
    with pytest.raises(CheckpointError, match=r"gone.h5: no such file"):
        read_memory_bank(tmp_path / "gone.h5", 3, True)
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
            read_memory_bank(tmp_path / f"{name}.h5", 3, True)


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
        whole(read_memory_bank(path, width=3, normalize=True))


# Talk2DINO


def talk2dino_state(second: str) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {
        "linear_layer.weight": torch.randn(6, 4),
        "linear_layer.bias": torch.randn(6),
        f"{second}.weight": torch.randn(3, 6),
        f"{second}.bias": torch.randn(3),
    }


@pytest.mark.parametrize("second", ["hidden_layers.0", "linear_layer2"])
def test_talk2dino_is_two_layers_with_a_tanh_between_under_either_name(second: str, tmp_path: Path) -> None:
    state = talk2dino_state(second)
    torch.save(state, tmp_path / "projection.pth")
    talk2dino = read_talk2dino(tmp_path / "projection.pth")
    texts = torch.randn(5, 4)
    hidden = torch.tanh(texts @ state["linear_layer.weight"].T + state["linear_layer.bias"])
    expected = hidden @ state[f"{second}.weight"].T + state[f"{second}.bias"]
    torch.testing.assert_close(talk2dino(texts), expected)
    assert (talk2dino.text_width, talk2dino.width) == (4, 3)


def test_published_files_of_one_name_are_told_apart_by_their_hash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "vitb_mlp_infonce.pth"
    torch.save(talk2dino_state("hidden_layers.0"), path)
    unknown = read_talk2dino(path)
    assert unknown.identity == f"an unpublished file (sha256 {unknown.sha256[:12]})"
    monkeypatch.setitem(read_talk2dino.__globals__["_KNOWN"], unknown.sha256, "the one of 2024-11")
    assert read_talk2dino(path).identity == "the one of 2024-11"
    assert len(read_talk2dino.__globals__["_KNOWN"]) == 4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"linear_layer.bias": None}, "linear_layer.bias is missing"),
        ({"hidden_layers.0.weight": None}, "hidden_layers.0.weight is missing"),
        (
            {"hidden_layers.1.weight": torch.ones(2, 2)},
            "hidden_layers.1.weight is not a weight of Talk2DINO's two layers",
        ),
        ({"hidden_layers.0.weight": torch.ones(3, 5)}, "hidden_layers.0.weight: expected 6 columns, .* got 5"),
        (
            {"linear_layer.bias": torch.ones(5)},
            r"linear_layer: expected weight \(out, in\) and bias \(out\), got \(6, 4\)",
        ),
    ],
)
def test_a_projection_of_another_layout_is_refused_by_key(
    changes: dict[str, torch.Tensor | None], message: str, tmp_path: Path
) -> None:
    state = {**talk2dino_state("hidden_layers.0"), **changes}
    torch.save({name: value for name, value in state.items() if value is not None}, tmp_path / "projection.pth")
    with pytest.raises(CheckpointError, match=f"projection.pth: {message}"):
        read_talk2dino(tmp_path / "projection.pth")


# Banks of captions

FLAGS = [
    "--text-tower",
    DEMO / "text_tower",
    "--tokenizer",
    DEMO / "tokenizer.json",
    "--talk2dino",
    DEMO / "talk2dino.pth",
]


def run(captions: Path, out: Path, *more: object) -> int:
    return memory_bank.main([str(part) for part in (captions, *FLAGS, "--out", out, *more)])


def test_the_demos_captions_become_the_demos_bank(tmp_path: Path) -> None:
    (tmp_path / "captions.txt").write_text("\n".join(scenes.all_captions()), encoding="utf-8")
    assert run(tmp_path / "captions.txt", tmp_path / "bank.h5") == 0
    made, captions = whole(read_memory_bank(tmp_path / "bank.h5", 192, True))
    stored, _ = whole(read_memory_bank(DEMO / "memory.h5", 192, True))
    assert captions == list(scenes.all_captions())
    assert torch.cosine_similarity(made, stored, dim=1).min() > 0.9999  # both sides were quantize_rows to float16
    assert [path.name for path in tmp_path.iterdir() if "bank" in path.name] == ["bank.h5"]


def test_an_interrupted_bank_goes_on_to_the_same_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "captions.json").write_text(json.dumps(list(scenes.all_captions()[:100])))
    assert run(tmp_path / "captions.json", tmp_path / "whole.h5", "--batch-size", 16) == 0
    embed, calls = memory_bank.CaptionEmbedder.embed, []

    def interrupted(side: memory_bank.CaptionEmbedder, captions: list[str]) -> torch.Tensor:
        calls.append(len(captions))
        if len(calls) == 4:
            raise KeyboardInterrupt
        return embed(side, captions)

    monkeypatch.setattr(memory_bank.CaptionEmbedder, "embed", interrupted)
    assert run(tmp_path / "captions.json", tmp_path / "bank.h5", "--batch-size", 16) == 130
    assert not (tmp_path / "bank.h5").exists()
    with (tmp_path / ".bank.h5.part" / "embeddings.f32").open("ab") as file:
        file.write(b"half a batch")
    assert run(tmp_path / "captions.json", tmp_path / "bank.h5", "--batch-size", 16) == 0
    assert calls == [16] * 7 + [4], "three batches of the first run were kept"
    rows, captions = whole(read_memory_bank(tmp_path / "bank.h5", 192, True))
    expected = whole(read_memory_bank(tmp_path / "whole.h5", 192, True))
    torch.testing.assert_close(rows, expected[0], rtol=0, atol=0)
    assert captions == expected[1]


def test_unfinished_work_of_another_job_is_not_gone_on_with(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    (tmp_path / "captions.txt").write_text("a red circle\n")
    with monkeypatch.context() as patch:
        patch.setattr(memory_bank.CaptionEmbedder, "embed", interrupt)
        assert run(tmp_path / "captions.txt", tmp_path / "bank.h5") == 130
    (tmp_path / "captions.txt").write_text("a blue circle\n")
    assert run(tmp_path / "captions.txt", tmp_path / "bank.h5") == 1
    assert "it was begun with other captions" in capsys.readouterr().err


def spoilt_tower(folder: Path, **changes: torch.Tensor | None) -> Path:
    """A copy of the demo's text tower with some weights changed, or left out."""
    shutil.copytree(DEMO / "text_tower", folder)
    state = load_file(folder / "model.safetensors")
    state |= {name.replace("__", "."): value for name, value in changes.items() if value is not None}
    kept = {name: value for name, value in state.items() if changes.get(name.replace(".", "__"), value) is not None}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_unfinished_work_of_another_tower_of_the_same_name_is_not_gone_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    (tmp_path / "captions.txt").write_text("a red circle\n")
    flags = ("--text-tower", spoilt_tower(tmp_path / "tower"))
    with monkeypatch.context() as patch:
        patch.setattr(memory_bank.CaptionEmbedder, "embed", interrupt)
        assert run(tmp_path / "captions.txt", tmp_path / "bank.h5", *flags) == 130
    shutil.rmtree(tmp_path / "tower")
    spoilt_tower(tmp_path / "tower", text_projection__weight=torch.ones(128, 128))
    assert run(tmp_path / "captions.txt", tmp_path / "bank.h5", *flags) == 1
    assert "it was begun with other captions, another text tower" in " ".join(capsys.readouterr().err.split())


def test_a_tower_with_a_weight_missing_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "captions.txt").write_text("a red circle\n")
    tower = spoilt_tower(tmp_path / "tower", text_projection__weight=None)
    assert run(tmp_path / "captions.txt", tmp_path / "bank.h5", "--text-tower", tower) == 1
    assert "tower: text_projection.weight is missing" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--tokenizer", "{captions}"], "captions.txt: not a tokenizer"),
        (["--device", "banana"], "cannot be loaded"),
        (["--text-tower", "{broken}"], "broken: cannot be loaded"),
        (["--text-tower", "{empty}"], "empty: cannot be loaded"),
        (["--talk2dino", "{empty}/gone.pth"], "gone.pth: no such file"),
    ],
)
def test_text_sides_that_cannot_be_opened_are_one_line(
    flags: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "captions.txt").write_text("a red circle\n")
    (tmp_path / "empty").mkdir()
    (spoilt_tower(tmp_path / "broken") / "model.safetensors").write_bytes(b"nonsense" * 9)
    paths = {"captions": tmp_path / "captions.txt", "broken": tmp_path / "broken", "empty": tmp_path / "empty"}
    assert run(tmp_path / "captions.txt", tmp_path / "bank.h5", *[flag.format(**paths) for flag in flags]) == 1
    error = capsys.readouterr().err.strip()
    assert message in error
    assert len(error.splitlines()) == 1


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("captions.txt", "\ufeffa cat\r\n\n  a dog \n"),
        ("captions.json", '["a cat", " ", "a dog"]'),
        ("captions.json", '{"images": [], "annotations": [{"id": 1, "caption": "a cat"}, {"caption": "a dog\\n"}]}'),
    ],
)
def test_captions_come_from_text_and_from_json(name: str, text: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    assert read_captions(tmp_path / name) == ["a cat", "a dog"]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("gone.txt", None, "no such file"),
        ("captions.json", "{", "cannot be read as captions"),
        ("captions.json", '{"annotations": [{"id": 1}]}', "expected a list of texts, or COCO captions"),
        ("captions.json", "3", "expected a list of texts"),
        ("captions.json", "{}", "expected at least one caption"),
        ("captions.txt", "\n", "expected at least one caption"),
    ],
)
def test_files_without_captions_are_refused(name: str, text: str | None, message: str, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(CheckpointError, match=f"{name}: {message}"):
        read_captions(tmp_path / name)


def test_a_projection_for_another_tower_is_refused(tmp_path: Path) -> None:
    torch.save(talk2dino_state("hidden_layers.0"), tmp_path / "projection.pth")
    with pytest.raises(CheckpointError, match="expected a projection of texts of width 128, .*text_tower's, got 4"):
        open_embedder(str(DEMO / "text_tower"), tmp_path / "projection.pth", DEMO / "tokenizer.json", "cpu")


def test_long_captions_are_cut_to_the_towers_context() -> None:
    side = open_embedder(str(DEMO / "text_tower"), DEMO / "talk2dino.pth", DEMO / "tokenizer.json", "cpu")
    assert side.embed(["a red circle " * 100, "a red circle"]).shape == (2, 192)


def test_a_tower_that_is_nowhere_is_asked_for_by_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    (tmp_path / "captions.txt").write_text("a cat")
    arguments = [tmp_path / "captions.txt", "--talk2dino", DEMO / "talk2dino.pth", "--out", tmp_path / "b.h5"]
    assert memory_bank.main([*map(str, arguments), "--text-tower", "nobody/no-tower"]) == 1
    error = " ".join(capsys.readouterr().err.split())
    assert "error: --text-tower nobody/no-tower: missing config.json (the text tower): not to be downloaded" in error


def test_mistakes_are_found_before_the_work(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "captions.txt").write_text("a cat")
    assert run(tmp_path / "captions.txt", tmp_path / "nowhere" / "bank.h5") == 1
    assert run(tmp_path / "captions.txt", tmp_path / "bank.h5", "--batch-size", 0) == 1
    assert run(tmp_path / "gone.txt", tmp_path / "bank.h5") == 1
    errors = " ".join(capsys.readouterr().err.split())
    assert errors.count("error: ") == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["captions.txt"]
