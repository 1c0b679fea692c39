"""The table of captions, read back by Python's csv."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from runtime import Box, Caption, Frame, FrameCaptions, PatchcaptionError, Point, WholeImage
from runtime.output.csv_table import COLUMNS, csv_table
from runtime.system.outputs import Output, write_whole

IMAGE = Image.new("RGB", (8, 8))
BOX = Caption("a dog", 0.25, (1,), Box(1, 2, 3.5, 4))


def write(path: Path, *frames: FrameCaptions, source: str | None = None) -> list[dict[str, str]]:
    with csv_table(Output(path), print) as table:
        for frame in frames:
            table.add(frame, source)
    return read(path)


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file, strict=True))


def frame(*captions: Caption, number: int = 0, seconds: float | None = 0.5, **more: Any) -> FrameCaptions:
    return FrameCaptions(Frame(number, seconds, IMAGE), list(captions), 0, 0.0, **more)


def test_there_is_a_row_for_each_region_of_each_frame(tmp_path: Path) -> None:
    rows = write(
        tmp_path / "out.csv",
        frame(BOX, Caption("a cat", 0.5, (), WholeImage(), reused=True)),
        frame(number=1),
        frame(Caption.missing(None, "Box x1: got nan"), Caption("", 0.5, (), Point(1, 2)), number=2, seconds=None),
        frame(number=3, error="it is no image"),
        source="clip.mp4",
    )
    assert [list(row) for row in rows] == [list(COLUMNS)] * 5
    given = [{name: value for name, value in row.items() if value} for row in rows]
    one = {"source": "clip.mp4", "frame": "0", "seconds": "0.5"}
    corners = {"x1": "1.0", "y1": "2.0", "x2": "3.5", "y2": "4.0"}
    more = {"caption": "a dog", "score": "0.25", "reused": "false"}
    assert given[0] == one | {"region": "0", "kind": "box"} | corners | more
    whole = {"region": "1", "kind": "whole_image", "caption": "a cat", "score": "0.5", "reused": "true"}
    assert given[1] == one | whole
    bad = {"source": "clip.mp4", "frame": "2", "region": "0", "score": "0.0", "reused": "false"}
    assert given[2] == bad | {"error": "Box x1: got nan"}
    assert given[3]["kind"] == "point"
    assert given[4] == {"source": "clip.mp4", "frame": "3", "seconds": "0.5", "error": "it is no image"}


@pytest.mark.parametrize("text", ['a "dog", and\na cat\r\n', "1+1=2", ",,", "café 犬", " ", "x" * 100_000])
def test_texts_come_back_as_they_are(tmp_path: Path, text: str) -> None:
    (row,) = write(tmp_path / "out.csv", frame(Caption(text, 1.0, ())))
    assert row["caption"] == text
    assert (tmp_path / "out.csv").read_bytes().startswith(",".join(COLUMNS).encode() + b"\r\n")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("=cmd|'/C calc'!A0", "'=cmd|'/C calc'!A0"),
        ("+1", "'+1"),
        ("-1", "'-1"),
        ("@SUM(A1)", "'@SUM(A1)"),
        ("\t=1", "'\t=1"),
        ("\x00=1\x1b[2J\x9b", r"\x00=1\x1b[2J\x9b"),
    ],
)
def test_no_text_is_a_formula_or_acts_on_a_terminal(tmp_path: Path, text: str, expected: str) -> None:
    bad = Caption.missing(None, text)
    rows = write(tmp_path / "out.csv", frame(Caption(text, 1.0, ()), bad), frame(error=text), source=text)
    assert [(row["source"], row["caption"], row["error"]) for row in rows] == [
        (expected, expected, ""),
        (expected, "", expected),
        (expected, "", expected),
    ]


def test_a_stream_without_regions_has_a_header(tmp_path: Path) -> None:
    assert write(tmp_path / "out.csv", frame()) == []
    assert (tmp_path / "out.csv").read_text().strip() == ",".join(COLUMNS)


def test_a_full_disk_leaves_whole_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "out.csv"

    def write_half(file: Any, data: bytes) -> None:
        write_whole(file, data[: len(data) // 2])
        raise OSError(28, "No space left on device")

    def until_it_is_full() -> None:
        with csv_table(Output(path), print) as table:
            table.add(frame(BOX, BOX))
            monkeypatch.setattr("runtime.output.recording.write_whole", write_half)
            table.add(frame(BOX, BOX, number=1))

    with pytest.raises(PatchcaptionError, match="out.csv: cannot be written: No space left on device"):
        until_it_is_full()
    assert [row["frame"] for row in read(path)] == ["0", "0"]
