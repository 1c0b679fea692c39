from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import pytest
from pyarrow import parquet

from runtime import Caption, Detection, Point
from runtime.batch.result_files import FORMATS, RowCounts, result_format
from runtime.batch.rows import CaptionRow
from runtime.errors import OptionError, PatchcaptionError

ROWS = [
    CaptionRow.of("a.jpg", 0, Caption("a cat", 0.5, (1,), Point(1, 2), detection=Detection(7, 3, "cat", 0.25))),
    CaptionRow.of("a.jpg", 1, Caption.missing(None, "region: outside")),
    CaptionRow.missing("b\udcff.jpg", "b\udcff.jpg: no such file"),
]
POINT = {"kind": "point", "x": 1.0, "y": 2.0}


def write(folder: Path, suffix: str) -> tuple[Path, RowCounts]:
    form = FORMATS[suffix]
    parts = []
    for number, row in enumerate(ROWS):
        parts.append(folder / f"{number}{suffix}")
        parts[-1].write_bytes(form.encode([row]))
    return folder / f"all{suffix}", form.join(parts, folder / f"all{suffix}")


def test_rows_as_json_lines(tmp_path: Path) -> None:
    file, counts = write(tmp_path, ".jsonl")
    assert counts == RowCounts(3, 2, "region: outside")
    empty = dict.fromkeys(CaptionRow.__dataclass_fields__)
    assert [json.loads(line) for line in file.read_text().splitlines()] == [
        {"image": "a.jpg", "index": 0, "region": POINT, "text": "a cat", "score": 0.5}
        | {"id": 7, "class_id": 3, "class_name": "cat", "confidence": 0.25, "error": None},
        empty | {"image": "a.jpg", "index": 1, "error": "region: outside"},
        empty | {"image": "b\\udcff.jpg", "error": "b\\udcff.jpg: no such file"},
    ]


def test_rows_as_parquet(tmp_path: Path) -> None:
    file, counts = write(tmp_path, ".parquet")
    assert counts == RowCounts(3, 2, "region: outside")
    rows = parquet.read_table(file).to_pylist()
    assert rows[0] == {"image": "a.jpg", "index": 0, "region": json.dumps(POINT), "text": "a cat", "score": 0.5} | {
        "id": "7", "class_id": 3, "class_name": "cat", "confidence": 0.25, "error": None
    }  # fmt: skip
    assert [row["error"] for row in rows] == [None, "region: outside", "b\\udcff.jpg: no such file"]
    assert parquet.ParquetFile(file).num_row_groups == 1


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("text", ["\x1b[2J\x00\n", "=cmd|'/C calc'!A0", "\u202e-->", "x" * 100_000, "half \ud800"])
def test_any_text_is_in_the_rows(tmp_path: Path, suffix: str, text: str) -> None:
    row = CaptionRow.of("a.jpg", 0, Caption(text, 0.5, (), detection=Detection(text, 1, text, 0.5)))
    (tmp_path / "rows").write_bytes(FORMATS[suffix].encode([row]))
    read = parquet.read_table(tmp_path / "rows").to_pylist() if suffix == ".parquet" else None
    (found,) = read or map(json.loads, (tmp_path / "rows").read_text().splitlines())
    expected = text.replace("\ud800", "\\ud800") if suffix == ".parquet" else text
    assert found["text"] == found["id"] == found["class_name"] == expected


@pytest.mark.parametrize("suffix", FORMATS)
def test_no_rows_are_a_file(tmp_path: Path, suffix: str) -> None:
    assert FORMATS[suffix].join([], tmp_path / "none") == RowCounts()
    (tmp_path / "part").write_bytes(FORMATS[suffix].encode([]))
    assert FORMATS[suffix].join([tmp_path / "part"], tmp_path / "none") == RowCounts()


def test_a_score_that_is_none_is_null() -> None:
    assert CaptionRow.of("a.jpg", 0, Caption("a", math.nan, ())).score is None


def test_another_ending_is_a_mistake() -> None:
    with pytest.raises(OptionError, match="--out x.csv: expected a file that ends in .parquet, .jsonl, .ndjson"):
        result_format(Path("x.csv"))


@pytest.mark.parametrize("module", ["pyarrow", "pyarrow.parquet"])
def test_what_is_not_installed_is_said_with_the_way_to_it(monkeypatch: pytest.MonkeyPatch, module: str) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(PatchcaptionError, match=rf"\.parquet: {module} .*: pip install 'patchcaption\[batch\]'"):
        result_format(Path("x.parquet"))
    assert result_format(Path("x.jsonl")) is FORMATS[".jsonl"]
