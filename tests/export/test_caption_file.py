"""Files of captions: what is none is named with its place, whatever it is, and the others are read."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from export.caption_file import (
    MAX_CHARACTERS,
    BadCaption,
    fault_of,
    read_caption_file,
    read_captions,
    read_texts,
    summary,
)
from export.checkpoint import CheckpointError

LONG = "a" * 10_000_000
EMPTY, INVISIBLE = "it is empty", "it has no visible character"
HALF = "it is not UTF-8, or has half a character (a lone surrogate)"
NOT_TEXTS: list[tuple[object, str]] = [
    (None, "nothing"),
    (3, "int"),
    (1.5, "float"),
    (True, "bool"),
    ([], "list"),
    ({"caption": {}}, "dict"),
]


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass"))
    return path


@pytest.mark.parametrize(
    ("caption", "fault"),
    [
        ("", EMPTY),
        (" \t\u3000\u2028\x1c", EMPTY),
        ("\x01\x1b", INVISIBLE),
        ("\u200b \u2060\ufeff", INVISIBLE),
        ("\u0301\ufe0f", INVISIBLE),
        ("\u115f\u3164\u2800\uffa0", INVISIBLE),
        ("\U000e0061\u202e", INVISIBLE),
        ("a\0b", "it holds the character NUL"),
        ("a\ud83d", HALF),
        (LONG, f"it has 10,000,000 characters, more than {MAX_CHARACTERS:,}"),
        *((value, f"expected a text, got {kind}") for value, kind in NOT_TEXTS),
    ],
)
def test_what_is_no_caption_says_why(caption: object, fault: str) -> None:
    assert fault_of(caption) == fault


@pytest.mark.parametrize(
    "caption", ["a", "漢", "é", "🐕", "?", "1", "\u200fשלום", "हिन्दी", "a\u200bb", "x" * MAX_CHARACTERS]
)
def test_what_can_be_seen_is_a_caption(caption: str) -> None:
    assert fault_of(caption) is None


@pytest.mark.parametrize("line_break", ["\n", "\r\n", "\r"])
def test_lines_are_counted_as_editors_count_them(tmp_path: Path, line_break: str) -> None:
    lines = ["\ufeffa cat", "", "  a dog ", "\x01", "a\x85bird", LONG, "a cow"]
    found = read_caption_file(write(tmp_path / "captions.txt", line_break.join(lines)))
    assert found.captions == ("a cat", "a dog", "a\x85bird", "a cow")
    assert found.places == ("line 1", "line 3", "line 5", "line 7")
    assert [(one.place, one.reason) for one in found.bad] == [
        ("line 2", EMPTY),
        ("line 4", INVISIBLE),
        ("line 6", "it has 10,000,000 characters, more than 10,000"),
    ]


def test_bytes_that_are_no_text_spoil_only_their_line(tmp_path: Path) -> None:
    found = read_caption_file(write(tmp_path / "captions.txt", b"a cat\na \xff dog\n\xed\xa0\x80\na \0 bird\na cow\n"))
    assert found.captions == ("a cat", "a cow")
    assert [(one.place, one.reason) for one in found.bad] == [
        ("line 2", HALF),
        ("line 3", HALF),
        ("line 4", "it holds the character NUL"),
    ]


def test_each_line_of_json_lines_is_read_by_itself(tmp_path: Path) -> None:
    lines = [
        '"a cat"',
        '{"caption": "a dog"}',
        "",
        '{"caption": "a bi',
        '"a \\ud83d"',
        '"a \\ud83d\\udc15"',
        "[" * 100_000,
        "9" * 10_000,
        '{"text": "a cow"}',
        '{"caption": ["a"]}',
    ]
    found = read_caption_file(write(tmp_path / "captions.jsonl", "\r\n".join(lines)))
    assert found.captions == ("a cat", "a dog", "a 🐕")
    assert found.places == ("line 1", "line 2", "line 6")
    faults = {one.place: one.reason for one in found.bad}
    assert faults["line 3"] == EMPTY
    assert faults["line 4"] == "it cannot be read as JSON: Unterminated string starting at at character 12"
    assert faults["line 5"] == HALF
    assert faults["line 7"] == "it cannot be read as JSON: it is nested too deep"
    assert faults["line 8"].startswith("it cannot be read as JSON: ")
    assert faults["line 9"] == "expected a text, got nothing"
    assert faults["line 10"] == "expected a text, got list"


def test_annotations_are_named_by_their_numbers(tmp_path: Path) -> None:
    entries = [{"caption": "a cat"}, {"id": 1}, {"caption": 3}, "a dog", None, {"caption": LONG}, {"caption": "a cat"}]
    found = read_caption_file(write(tmp_path / "coco.JSON", "\ufeff" + json.dumps({"annotations": entries})))
    assert found.captions == ("a cat", "a dog", "a cat"), "one that comes twice is learned twice"
    assert found.places == ("annotation 0", "annotation 3", "annotation 6")
    assert [one.place for one in found.bad] == [f"annotation {number}" for number in (1, 2, 4, 5)]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[" * 100_000, "cannot be read as captions: it is nested too deep"),
        ('["a", ', "cannot be read as captions: Expecting value at character 6"),
        (b"\xff", "cannot be read as captions: Expecting value at character 0"),
        ("", "cannot be read as captions: Expecting value at character 0"),
        ("{}", "expected a text file, one caption a line; "),
        ('{"images": []}', "expected a text file, one caption a line; "),
        ('{"annotations": {}}', "expected a text file, one caption a line; "),
        ('{"annotations": []}', "expected at least one caption, got none"),
        ('["", null]', "expected at least one caption, got none; caption 0: it is empty"),
        ("7", "expected a text file"),
    ],
)
def test_json_without_captions_is_one_line(tmp_path: Path, content: str | bytes, message: str) -> None:
    path = write(tmp_path / "captions.json", content)
    with pytest.raises(CheckpointError) as caught:
        read_caption_file(path)
    assert str(caught.value).startswith(f"{path}: {message}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["captions.txt", "captions.jsonl", "captions.json"])
def test_a_caption_of_10_mb_takes_memory_for_a_few_of_it(tmp_path: Path, name: str) -> None:
    texts = ["a cat", LONG, "a dog"]
    lines = "\n".join(texts if name.endswith(".txt") else map(json.dumps, texts))
    path = write(tmp_path / name, json.dumps(texts) if name.endswith(".json") else lines)
    tracemalloc.start()
    try:
        assert read_caption_file(path).captions == ("a cat", "a dog")
        assert tracemalloc.get_traced_memory()[1] < 5 * len(LONG)
    finally:
        tracemalloc.stop()


def test_reasons_are_told_once_with_the_first_place_and_how_many_more() -> None:
    reasons = ["it has 78 tokens, more than 77", EMPTY, "it has 1,200 tokens, more than 77", EMPTY, EMPTY]
    bad = [BadCaption(f"line {number}", reason) for number, reason in enumerate(reasons, 1)]
    assert list(summary(bad)) == [
        "line 1: it has 78 tokens, more than 77, and 1 more of that kind",
        "line 2: it is empty, and 2 more of that kind",
    ]


def test_where_every_caption_counts_only_what_has_nothing_to_say_is_passed_over(tmp_path: Path) -> None:
    path = write(tmp_path / "captions.json", json.dumps(["a cat", " ", "\u200b", " a dog"]))
    assert read_captions(path) == ["a cat", "a dog"]
    assert read_texts(path) == ["a cat", " ", "\u200b", " a dog"]
    path = write(tmp_path / "captions.json", json.dumps(["a cat", 3]))
    for read in (read_captions, read_texts):
        with pytest.raises(CheckpointError, match="caption 1: expected a text, got int"):
            read(path)


@given(
    st.lists(
        st.one_of(
            st.text(st.characters(), max_size=8), st.none(), st.integers(), st.dictionaries(st.text(), st.none())
        ),
        max_size=8,
    ),
    st.sampled_from([".json", ".jsonl", ".coco.json"]),
)
def test_every_entry_is_a_caption_or_named(
    tmp_path_factory: pytest.TempPathFactory, entries: list[object], suffix: str
) -> None:
    path = tmp_path_factory.getbasetemp() / f"any{suffix}"
    if suffix == ".jsonl":
        path.write_text("".join(f"{json.dumps(entry)}\n" for entry in entries))
    else:
        path.write_text(json.dumps({"annotations": entries} if suffix == ".coco.json" else entries))
    first = 1 if suffix == ".jsonl" else 0
    if all(isinstance(entry, dict) or fault_of(entry) for entry in entries):
        with pytest.raises(CheckpointError, match="expected at least one caption"):
            read_caption_file(path)
        return
    found = read_caption_file(path)
    bad = {one.place: one.reason for one in found.bad}
    good = dict(zip(found.places, found.captions, strict=True))
    for number, entry in enumerate(entries, first):
        (place,) = (place for place in (*bad, *good) if place.endswith(f" {number}"))
        if isinstance(entry, str) and place in good:
            assert good[place] == entry.strip()
            assert good[place].encode()
        else:
            assert bad[place]


@given(st.binary(max_size=60), st.sampled_from([".txt", ".json", ".jsonl"]))
def test_any_bytes_are_captions_or_one_line(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, suffix: str
) -> None:
    path = tmp_path_factory.getbasetemp() / f"bytes{suffix}"
    path.write_bytes(content)
    try:
        captions = read_caption_file(path).captions
    except CheckpointError:
        return
    assert all(caption.encode() and caption == caption.strip() for caption in captions)
