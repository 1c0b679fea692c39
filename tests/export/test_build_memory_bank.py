"""Memory banks made of captions, through the tower of a text space."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

from export import build_memory_bank as memory_bank
from export.caption_file import read_captions
from export.checkpoint import CheckpointError
from export.demo import scenes
from export.readers import DEMO_CONFIG, read_checkpoint
from export.readers.memory_hdf5 import read_memory_bank
from export.text_spaces import TEXT_SPACES, text_space
from export.text_towers import open_text_tower
from export.text_towers.base import TextTower
from tests.export.conftest import talk2dino_state, whole_bank

DEMO = DEMO_CONFIG.parent
SPACE = text_space("demo", 192)

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
    bank = read_memory_bank(tmp_path / "bank.h5", SPACE)
    assert bank.text_space == read_checkpoint("demo").text_space
    made, captions = whole_bank(bank)
    stored, _ = whole_bank(read_memory_bank(DEMO / "memory.h5", SPACE))
    assert captions == list(scenes.all_captions())
    assert torch.cosine_similarity(made, stored, dim=1).min() > 0.9999  # both sides were rounded to float16
    assert [path.name for path in tmp_path.iterdir() if "bank" in path.name] == ["bank.h5"]


def test_an_interrupted_bank_goes_on_to_the_same_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "captions.json").write_text(json.dumps(list(scenes.all_captions()[:100])))
    assert run(tmp_path / "captions.json", tmp_path / "whole.h5", "--batch-size", 16) == 0
    embed, calls = TextTower.embed, []

    def interrupted(side: TextTower, captions: list[str]) -> torch.Tensor:
        calls.append(len(captions))
        if len(calls) == 4:
            raise KeyboardInterrupt
        return embed(side, captions)

    monkeypatch.setattr(TextTower, "embed", interrupted)
    assert run(tmp_path / "captions.json", tmp_path / "bank.h5", "--batch-size", 16) == 130
    assert not (tmp_path / "bank.h5").exists()
    with (tmp_path / ".bank.h5.part" / "embeddings.f32").open("ab") as file:
        file.write(b"half a batch")
    assert run(tmp_path / "captions.json", tmp_path / "bank.h5", "--batch-size", 16) == 0
    assert calls == [16] * 7 + [4], "three batches of the first run were kept"
    rows, captions = whole_bank(read_memory_bank(tmp_path / "bank.h5", SPACE))
    expected = whole_bank(read_memory_bank(tmp_path / "whole.h5", SPACE))
    torch.testing.assert_close(rows, expected[0], rtol=0, atol=0)
    assert captions == expected[1]


def test_unfinished_work_of_another_job_is_not_gone_on_with(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    (tmp_path / "captions.txt").write_text("a red circle\n")
    with monkeypatch.context() as patch:
        patch.setattr(TextTower, "embed", interrupt)
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
        patch.setattr(TextTower, "embed", interrupt)
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
        ("captions.json", '{"annotations": [{"id": 1}]}', "expected at least one caption, got none; annotation 0"),
        ("captions.json", '["a", "\\ud83d"]', "caption 1: it is not UTF-8, or has half a character"),
        ("captions.json", "3", "expected a text file"),
        ("captions.json", "{}", "expected a text file"),
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
        open_text_tower(None, str(DEMO / "text_tower"), tmp_path / "projection.pth", DEMO / "tokenizer.json", "cpu")


def test_long_captions_are_cut_to_the_towers_context() -> None:
    side = open_text_tower(None, str(DEMO / "text_tower"), DEMO / "talk2dino.pth", DEMO / "tokenizer.json", "cpu")
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


@pytest.fixture
def clip_tower(tmp_path: Path) -> Path:
    """A tower as wide as that of clip-b16, with the demo's vocabulary."""
    config = CLIPTextConfig(
        vocab_size=Tokenizer.from_file(str(DEMO / "tokenizer.json")).get_vocab_size(),
        hidden_size=64,
        intermediate_size=64,
        projection_dim=512,
        num_hidden_layers=1,
        num_attention_heads=1,
    )
    torch.manual_seed(0)
    CLIPTextModelWithProjection(config).save_pretrained(tmp_path / "clip")
    (tmp_path / "clip" / "tokenizer.json").write_bytes((DEMO / "tokenizer.json").read_bytes())
    return tmp_path / "clip"


def run_for(space: str, tower: Path, folder: Path, *more: object) -> int:
    (folder / "captions.txt").write_text("a red circle\na blue square\n")
    arguments = ("--space", space, "--text-tower", tower, "--out", folder / "bank.h5", *more)
    return memory_bank.main([str(folder / "captions.txt"), *map(str, arguments)])


def test_a_bank_of_a_space_holds_its_towers_embeddings_and_its_name(
    tmp_path: Path, clip_tower: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_for("clip-b16", clip_tower, tmp_path) == 0
    assert "bank.h5: 2 captions, width 512, text space clip-b16" in " ".join(capsys.readouterr().out.split())
    tower = open_text_tower("clip-b16", str(clip_tower), None, None, "cpu")
    embeddings = tower.embed(["a red circle", "a blue square"])
    with h5py.File(tmp_path / "bank.h5") as file:
        np.testing.assert_array_equal(file["coco_captions-embeddings"], embeddings.numpy())  # raw, as published
    bank = read_memory_bank(tmp_path / "bank.h5", TEXT_SPACES["clip-b16"])
    assert bank.text_space == "clip-b16"
    rows, captions = whole_bank(bank)
    assert captions == ["a red circle", "a blue square"]
    torch.testing.assert_close(rows, torch.nn.functional.normalize(embeddings))


def test_a_bank_of_dinotxt_holds_both_halves(tmp_path: Path) -> None:
    vocabulary, width = Tokenizer.from_file(str(DEMO / "tokenizer.json")).get_vocab_size(), 64
    state = {
        "backbone.token_embedding.weight": torch.randn(vocabulary, width),
        "backbone.positional_embedding": torch.randn(77, width),
        "backbone.ln_final.weight": torch.ones(width),
        "backbone.ln_final.bias": torch.zeros(width),
        "head.linear_projection.weight": torch.randn(2048, width),
    }
    torch.save(state, tmp_path / "text_encoder.pth")
    flags = ("--tokenizer", DEMO / "tokenizer.json")
    assert run_for("dinotxt-patch", tmp_path / "text_encoder.pth", tmp_path, *flags) == 0
    with h5py.File(tmp_path / "bank.h5") as file:
        stored = np.asarray(file["coco_captions-embeddings"])
    assert stored.shape == (2, 2048)
    rows, _ = whole_bank(read_memory_bank(tmp_path / "bank.h5", TEXT_SPACES["dinotxt-patch"]))
    np.testing.assert_array_equal(rows, stored[:, 1024:])


def test_unfinished_work_of_another_space_is_not_gone_on_with(
    tmp_path: Path, clip_tower: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(TextTower, "embed", interrupt)
        assert run_for("clip-b16", clip_tower, tmp_path) == 130
    assert run_for("clip-b32", clip_tower, tmp_path) == 1
    assert "another text tower, projection, space or batch size" in " ".join(capsys.readouterr().err.split())
    assert run_for("clip-b16", clip_tower, tmp_path) == 0


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "--space is missing; expected the text space of the decoder, one of t2d-dinov2-b-2024, "),
        (["--space", "clip-b8"], "--space clip-b8: expected one of t2d-dinov2-b-2024, "),
        (["--space", "t2d-dinov2-b-2024"], "--talk2dino is missing; expected the file of the projection into it"),
        (
            ["--space", "clip-b16", "--talk2dino", DEMO / "talk2dino.pth"],
            "the text space clip-b16 has no such projection",
        ),
        (
            ["--space", "t2d-dinov3-b", "--talk2dino", DEMO / "talk2dino.pth"],
            "into the text space t2d-dinov3-b, got one",
        ),
    ],
)
def test_a_space_that_cannot_be_made_is_one_line(
    flags: list[object], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "captions.txt").write_text("a red circle\n")
    arguments = [tmp_path / "captions.txt", "--out", tmp_path / "bank.h5", *flags]
    assert memory_bank.main([*map(str, arguments)]) == 1
    error = capsys.readouterr().err.strip()
    assert message in error
    assert len(error.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["captions.txt"]
