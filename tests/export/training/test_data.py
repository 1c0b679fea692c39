"""What a decoder learns of captions, and which captions it cannot learn."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers

from export.caption_file import CaptionFile
from export.checkpoint import CaptionedRows, CheckpointError, MemorySource
from export.readers.clip_bpe import find_merges, read_clip_bpe, read_tokenizer
from export.training.data import MAX_TOKENS, CaptionTokens, make_data, without_bad_captions
from export.training.objective import IGNORED
from tests.export.training.conftest import DEMO

START, END = 168, 169
DEMO_TOKENS = CaptionTokens(read_tokenizer(DEMO / "tokenizer.json"), length=8)
NO_TOKEN = "none of it is a token of the decoder's vocabulary"


def words(unknown: str | None, *more: str) -> CaptionTokens:
    """Tokens of a vocabulary of whole words."""
    vocabulary = {word: number for number, word in enumerate(["a", "dog", "<|startoftext|>", "<|endoftext|>", *more])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=unknown))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(["<|startoftext|>", "<|endoftext|>"])
    return CaptionTokens(tokenizer, length=8)


def test_targets_are_the_tokens_with_their_end_and_nothing_after_it() -> None:
    own = DEMO_TOKENS.tokenizer.encode("a red circle", add_special_tokens=False).ids
    token_ids, targets = DEMO_TOKENS.of(["a red circle", "a red circle " * 5])
    assert token_ids[0].tolist() == [START, *own, END, *[0] * (6 - len(own))]
    assert targets[0].tolist() == [START, *own, END, *[IGNORED] * (6 - len(own))]
    assert targets[1].tolist() == token_ids[1].tolist() == [START, *(own * 5)[:7]], "a long caption has no end"


def test_without_a_start_token_captions_begin_with_their_first_word() -> None:
    tokens = CaptionTokens(DEMO_TOKENS.tokenizer, 8, has_start=False)
    assert tokens.of(["a red circle"])[1][0].tolist() == [*DEMO_TOKENS.of(["a red circle"])[1][0, 1:].tolist(), IGNORED]


@pytest.mark.parametrize(
    ("captions", "fault"),
    [
        (["xyzzy"], None),  # in letters that the vocabulary has
        (["a circle " * 37 + "a"], None),
        (["a circle " * 37 + "a red"], f"it has 78 tokens, more than {MAX_TOKENS}"),
        (["a red<|endoftext|> circle"], "it holds the start or end token"),
        (["<|startoftext|> a red circle"], "it holds the start or end token"),
        (["<|endoftext|>"], "it holds the start or end token"),
        (["a" * 10_001], "it has 10,001 characters, more than 10,000"),
        (["\u200b"], "it has no visible character"),
        ([""], "it is empty"),
    ],
)
def test_captions_of_the_demos_vocabulary(captions: list[str], fault: str | None) -> None:
    assert list(DEMO_TOKENS.faults(captions)) == [fault]


@pytest.mark.parametrize(
    ("unknown", "caption", "fault"),
    [
        ("[UNK]", "zebra quagga", NO_TOKEN),
        ("[UNK]", "a zebra", None),
        ("<|endoftext|>", "zebra", NO_TOKEN),
        ("<|endoftext|>", "a zebra dog", "it holds the start or end token"),
    ],
)
def test_words_that_the_vocabulary_lacks(unknown: str, caption: str, fault: str | None) -> None:
    assert list(words(unknown, "[UNK]").faults([caption])) == [fault]


def test_a_tokenizer_without_clips_end_token_is_refused() -> None:
    tokenizer = Tokenizer(models.WordLevel({"a": 0, "[UNK]": 1}, unk_token="[UNK]"))
    with pytest.raises(CheckpointError, match=r"the tokenizer has no <\|startoftext\|>"):
        list(CaptionTokens(tokenizer, 8).faults(["a"]))


@pytest.mark.skipif(find_merges() is None, reason="needs pip install --no-deps open_clip_torch")
def test_every_character_is_a_token_of_clips() -> None:
    assert list(CaptionTokens(read_clip_bpe(), 20).faults(["漢字", "🐕", "\x07bell", "<|endoftext|>"])) == [
        None,
        None,
        None,
        NO_TOKEN,
    ]


class Recording:
    """A tokenizer that keeps the length of the longest text that it was given."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer, self.longest = tokenizer, 0

    def encode_batch(self, texts: Sequence[str], add_special_tokens: bool) -> object:
        self.longest = max([self.longest, *map(len, texts)])
        return self._tokenizer.encode_batch(texts, add_special_tokens=add_special_tokens)

    def __getattr__(self, name: str) -> object:
        return getattr(self._tokenizer, name)


def test_no_tokenizer_sees_a_text_of_the_length_of_a_book() -> None:
    tokenizer = Recording(DEMO_TOKENS.tokenizer)
    tokens = CaptionTokens(tokenizer, 8)  # type: ignore[arg-type]
    assert list(tokens.faults(["a circle", "a" * 10_000_000, "a square"]))[::2] == [None, None]
    assert tokenizer.longest == len("a circle")


def test_captions_that_cannot_be_learned_keep_their_places() -> None:
    file = CaptionFile(("a circle", "a circle " * 40, "a square"), ("line 1", "line 3", "line 7"))
    checked = DEMO_TOKENS.check(file)
    assert checked.captions == ("a circle", "a square")
    assert checked.places == ("line 1", "line 7")
    assert [(one.place, one.reason) for one in checked.bad] == [("line 3", "it has 82 tokens, more than 77")]


@given(st.lists(st.text(max_size=12), max_size=10))
def test_what_has_no_fault_is_learned_with_tokens_of_its_own(captions: list[str]) -> None:
    faults = list(DEMO_TOKENS.faults(captions))
    assert len(faults) == len(captions)
    good = [caption for caption, fault in zip(captions, faults, strict=True) if fault is None]
    _, targets = DEMO_TOKENS.of(good)
    for row in targets.tolist():
        own = [number for number in row if number != IGNORED]
        assert own[0] == START
        assert len(own) > 2 or own[-1] != END
        assert own.index(END) == len(own) - 1 if END in own else len(own) == 8


def bank_of(*blocks: tuple[Sequence[Sequence[float]], list[str]], unit_rows: bool = False) -> MemorySource:
    def rows() -> Iterator[CaptionedRows]:
        for embeddings, captions in blocks:
            yield torch.tensor(embeddings), captions

    return MemorySource("bank.h5: rows", 2, rows, normalize=True, unit_rows=unit_rows)


def test_rows_of_a_bank_whose_captions_cannot_be_learned_are_left_out() -> None:
    bank = bank_of(
        ([[1.0, 0], [2.0, 0], [3.0, 0]], ["a circle", "", "a circle " * 40]),
        ([[0, 0], [4.0, 0], [5.0, 0]], ["zero", "a square", " "]),
        ([[6.0, 0]], ["\u200b"]),
    )
    left, captions, bad = without_bad_captions(bank, DEMO_TOKENS)
    assert captions == 3
    assert [(one.place, one.reason) for one in bad] == [
        ("row 1", "it is empty"),
        ("row 2", "it has 82 tokens, more than 77"),
        ("row 5", "it is empty"),
        ("row 6", "it has no visible character"),
    ]
    data = make_data(left, DEMO_TOKENS)
    assert data.embeddings[:, 0].tolist() == [1, 4]
    assert data.token_ids.equal(DEMO_TOKENS.of(["a circle", "a square"])[0])


def test_a_bank_without_bad_captions_is_used_as_it_is() -> None:
    bank = bank_of(([[1.0, 0]], ["a circle"]))
    assert without_bad_captions(bank, DEMO_TOKENS) == (bank, 1, ())


def test_embeddings_that_are_no_numbers_are_named_by_their_row() -> None:
    bank = bank_of(([[1.0, 0], [1.0, 0]], ["", "a circle"]), ([[float("nan"), 0]], ["a square"]))
    with pytest.raises(CheckpointError, match="got NaN or infinity in row 2"):
        without_bad_captions(bank, DEMO_TOKENS)


def test_held_out_captions_are_not_learned() -> None:
    rows = [[float(number), 1] for number in range(1, 11)]
    data = make_data(bank_of((rows, ["a circle"] * 10)), DEMO_TOKENS)
    learned, held_out = data.split(3, seed=5)
    numbers = [sorted(part.embeddings[:, 0].tolist()) for part in (learned, held_out)]
    assert list(map(len, numbers)) == [7, 3]
    assert sorted(numbers[0] + numbers[1]) == [row[0] for row in rows]
    assert [part.embeddings.tolist() for part in data.split(3, seed=5)] == [
        learned.embeddings.tolist(),
        held_out.embeddings.tolist(),
    ]
    assert data.split(3, seed=6)[1].embeddings.tolist() != held_out.embeddings.tolist()
    whole, none = data.split(0, seed=5)
    assert (len(whole), len(none)) == (10, 0)
