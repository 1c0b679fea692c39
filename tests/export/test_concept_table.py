"""Similar entities by their embeddings, and the tables that a build writes into a bundle."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import BertConfig, BertModel, BertTokenizerFast

from export.checkpoint import CheckpointError, MemorySource
from export.concepts import similarity
from export.concepts.graph_file import graph_line
from export.concepts.prompt_source import ConceptPromptSource, read_concepts
from export.concepts.similarity import load_name_encoder, similar_lists
from runtime.bundle import ConceptsConfig, HeldFile
from runtime.bundle.prompt_pieces import Piece, PromptPieces
from runtime.decoding.concepts import ConceptTable

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "There", "are", "in", "image", "something", ".", ",", "dog", "cat", "big"]


def vectors(*cosines: float) -> Tensor:
    """The first axis, and unit vectors with these cosines to it, each in a plane of its own."""
    rows = torch.zeros(len(cosines) + 1, len(cosines) + 1)
    rows[0, 0] = 1
    for index, cosine in enumerate(cosines, 1):
        rows[index, 0], rows[index, index] = cosine, (1 - cosine**2) ** 0.5
    return rows


def test_entities_above_the_threshold_are_similar_and_none_to_itself() -> None:
    found = similar_lists(vectors(0.551, 0.549, -0.9, 0.7))
    assert list(found) == [[1, 4], [0], [], [], [0]]
    assert list(similar_lists(3 * vectors(0.551))) == [[1], [0]]  # whatever their length


def test_the_threshold_itself_is_not_similar() -> None:
    near = torch.tensor(0.55, dtype=torch.float32)
    above = torch.nextafter(near, torch.tensor(1.0))
    for cosine, expected in ((near, [[], []]), (above, [[1], [0]])):
        rows = torch.tensor([[1.0, 0.0, 0.0], [cosine, 0.0, 0.0]])
        rows[1, 1] = (1 - cosine.double() ** 2).sqrt().float()
        assert list(map(list, similarity.similar_lists(rows))) == expected


def test_blocks_find_the_pairs_of_the_whole_product(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    rows = torch.nn.functional.normalize(torch.randn(100, 6, generator=generator), dim=1)
    expected = (rows @ rows.T > 0.55).fill_diagonal_(False)
    monkeypatch.setattr(similarity, "_BLOCK_ROWS", 7)
    found = similar_lists(rows)
    assert list(found) == [row.nonzero()[:, 0].tolist() for row in expected]
    assert (found.offsets.dtype, found.values.dtype) == (np.int32, np.int32)


def test_no_entities_have_no_pairs() -> None:
    assert list(similar_lists(torch.zeros(0, 4))) == []


def test_embeddings_that_are_not_finite_are_refused() -> None:
    with pytest.raises(CheckpointError, match="expected finite numbers, got NaN or infinity"):
        similar_lists(torch.tensor([[1.0], [float("nan")]]))


@pytest.fixture
def encoder_folder(tmp_path: Path) -> Path:
    """A small BERT of the kind of all-MiniLM-L6-v2."""
    folder = tmp_path / "encoder"
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    config = BertConfig(
        vocab_size=len(WORDS), hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8
    )
    torch.manual_seed(0)
    BertModel(config).save_pretrained(folder)
    BertTokenizerFast(vocab=str(folder / "vocab.txt")).save_pretrained(folder)
    return folder


def test_names_are_embedded_by_the_mean_of_their_tokens_at_unit_length(encoder_folder: Path) -> None:
    names = ["big dog", "cat", "", "dog cat big dog", "cat"]
    embeddings = load_name_encoder(str(encoder_folder), "cpu")(names)
    model = BertModel.from_pretrained(encoder_folder).eval()
    for name, embedding in zip(names, embeddings, strict=True):
        ids = [WORDS.index("[CLS]"), *map(WORDS.index, name.split()), WORDS.index("[SEP]")]
        with torch.inference_mode():
            mean = model(torch.tensor([ids])).last_hidden_state[0].mean(dim=0)
        torch.testing.assert_close(embedding, mean / mean.norm(), rtol=1e-5, atol=1e-6)
    assert load_name_encoder(str(encoder_folder), "cpu")([]).shape == (0, 8)


def test_an_encoder_that_cannot_be_loaded_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=f"viecap.meacap.wte_model_path {tmp_path}: cannot be loaded"):
        load_name_encoder(str(tmp_path), "cpu")


def words_tokenizer() -> Tokenizer:
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return tokenizer


def one_hot(names: Sequence[str]) -> Tensor:
    """Embeddings that are all different, but for cat's, which is dog's."""
    rows = torch.eye(len(names))
    if "dog" in names and "cat" in names:
        rows[names.index("cat")] = rows[names.index("dog")]
    return rows


def memory_of(captions: Sequence[str], *zero_rows: int) -> MemorySource:
    """A memory of these captions, of which some have no direction."""
    rows = torch.ones(len(captions), 2)
    rows[list(zero_rows)] = 0
    return MemorySource("a test", 2, lambda: iter([(rows, list(captions))]), normalize=False)


def source_of(folder: Path, captions: Sequence[str], graphs: Sequence[str], *zero_rows: int) -> ConceptPromptSource:
    lines = [graph_line(*pair) for pair in zip(captions, graphs, strict=True)]
    (folder / "graphs.jsonl").write_text("".join(lines), encoding="utf-8")
    memory = memory_of(captions, *zero_rows)
    return read_concepts(memory, folder / "graphs.jsonl", one_hot, words_tokenizer(), num_captions=3)


CAPTIONS = ["A big dog", "A dark room", "A big cat", "The big dog", "A dog"]
GRAPHS = ["( dog , is , big )", "( room )", "( cat , is , big )", "( dog , is , big )", "( dog )"]


def test_a_written_table_is_read_and_looked_up(tmp_path: Path) -> None:
    source = source_of(tmp_path, CAPTIONS, GRAPHS, 1)
    (tmp_path / "out").mkdir()
    config = source.write(tmp_path / "out")
    assert config == ConceptsConfig(graphs="concepts.safetensors", pieces="prompt_pieces.json", num_captions=3)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [config.graphs, config.pieces]
    captions = [*CAPTIONS[:1], *CAPTIONS[2:]]  # as the bank has them
    table = ConceptTable.read(HeldFile(tmp_path / "out" / config.graphs), captions)
    assert table.names == ["dog", "cat", "big"]
    pieces = PromptPieces.read(HeldFile(tmp_path / "out" / config.pieces), len(table.names), len(WORDS))
    (concept,) = table.concepts([0, 1, 2])
    assert concept.text == "big dog"
    prompt = pieces.join([pieces.of(concept.entity, concept.attribute)])
    assert [WORDS[token] for token in prompt] == ["There", "are", "big", "dog", "in", "image", "."]
    assert table.concepts([0, 3]) == []
    assert source.max_tokens == 2 + 3 * 2 + 3  # three names with their commas
    assert source.notes == ()


@pytest.mark.parametrize("text", ["", "( dog ) , ( cat )", "( , )"])
def test_memories_that_name_nothing_are_written(text: str, tmp_path: Path) -> None:
    config = source_of(tmp_path, ["a", "b", "c"], [text] * 3).write(tmp_path)
    table = ConceptTable.read(HeldFile(tmp_path / config.graphs), ["x"] * 3)
    pieces = PromptPieces.read(HeldFile(tmp_path / config.pieces), len(table.names), len(WORDS))
    for concept in table.concepts([0, 1, 2]):
        pieces.join([pieces.of(concept.entity, concept.attribute)])


def test_the_same_memory_is_written_to_the_same_bytes(tmp_path: Path) -> None:
    contents = []
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        source_of(tmp_path, CAPTIONS, GRAPHS).write(tmp_path / name)
        contents.append({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()})
    assert contents[0] == contents[1]


def test_a_name_of_many_tokens_is_cut_in_prompts_and_noted(tmp_path: Path) -> None:
    long = " ".join(["dog"] * 200)
    source = source_of(tmp_path, ["a", "b"], ["( cat )", f"( {long} , is , big )"])
    dog, comma = WORDS.index("dog"), WORDS.index(",")
    assert source.arrays.names == ["cat", long, "big"]
    assert source.pieces[1] == Piece((dog,) * 24, (*(dog,) * 24, comma))
    assert source.notes == (f"1 names of scene graphs are cut to 24 tokens in prompts, for example {long[:40]!r}...",)
    assert source.max_tokens == 2 + 2 + 25 + 2 + 3
    crowd = [" ".join(["dog"] * (20 + index)) for index in range(8)]
    assert source_of(tmp_path, crowd, [f"( {name} )" for name in crowd]).max_tokens == 64
