from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from pyarrow import parquet

from runtime import Box, Captioner, PatchcaptionError, WholeImage
from runtime.backends.measurements import MeasuredRun, Measurement, save_measurement
from runtime.batch import progress
from runtime.batch.part_captioner import CaptionerSettings
from runtime.bundle import Bundle
from runtime.cli.main import main
from tests.conftest import SAMPLE

BOX = Box(20, 20, 80, 80)
Run = Callable[..., tuple[int, list[dict[str, Any]]]]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with a folder of five images in it."""
    monkeypatch.chdir(tmp_path)
    Path("images/more").mkdir(parents=True)
    with Image.open(SAMPLE / "scene.jpg") as scene:
        for number, name in enumerate(("a", "b", "c", "more/d", "more/e")):
            scene.rotate(60 * number).resize((120, 100)).save(f"images/{name}.png")
    return tmp_path


@pytest.fixture
def run(demo_bundle: Path, folder: Path) -> Run:
    """Runs the command; returns its exit code and the rows of out.jsonl."""

    def run(*arguments: str, images: Sequence[str] = ("images",), out: str = "out.jsonl") -> tuple[int, list[Any]]:
        code = main(["batch", *images, "--bundle", str(demo_bundle), "--out", out, *arguments])
        file = folder / out
        if not file.exists():
            return code, []
        if file.suffix == ".parquet":
            return code, parquet.read_table(file).to_pylist()
        return code, [json.loads(line) for line in file.read_text().splitlines()]

    return run


def test_captions_are_those_of_the_library(run: Run, demo: Captioner, capsys: pytest.CaptureFixture[str]) -> None:
    Path("regions.json").write_text(json.dumps([{"kind": "whole_image"}, [20, 20, 80, 80]]))
    code, rows = run("--regions", "regions.json", "--part-images", "2")
    assert code == 0
    names = [f"images/{name}.png" for name in ("a", "b", "c", "more/d", "more/e")]
    assert [(row["image"], row["index"]) for row in rows] == [(name, index) for name in names for index in (0, 1)]
    for name, own in zip(names, zip(rows[::2], rows[1::2], strict=True), strict=True):
        assert [row["text"] for row in own] == [one.text for one in demo.caption(name, [WholeImage(), BOX])]
    assert capsys.readouterr() == ("out.jsonl: 10 rows of 5 images\n", "")


def test_without_regions_the_whole_of_each_image_is_captioned(run: Run, demo: Captioner) -> None:
    code, rows = run(images=("images/*.png", "images/a.png"), out="out.parquet")
    assert code == 0
    assert [row["image"] for row in rows] == ["images/a.png", "images/b.png", "images/c.png"]
    assert rows[1]["text"] == demo.caption("images/b.png", [WholeImage()])[0].text
    assert json.loads(rows[1]["region"])["kind"] == "whole_image"


def test_regions_by_image_carry_their_ids_and_classes(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    data = {
        "images": [{"id": 1, "file_name": "d.png"}, {"id": 2, "file_name": "a.png"}, {"id": 3, "file_name": "z.png"}],
        "annotations": [
            {"id": 71, "image_id": 1, "category_id": 5, "bbox": [20, 20, 60, 60], "score": 0.5},
            {"id": 72, "image_id": 1, "category_id": 5, "bbox": [500, 500, 60, 60]},
            {"id": 73, "image_id": 2, "category_id": 6, "segmentation": [[20, 20, 80, 20, 80, 80]]},
        ],
        "categories": [{"id": 5, "name": "triangle"}, {"id": 6, "name": "square"}],
    }
    Path("instances.json").write_text(json.dumps(data))
    code, rows = run("--regions", "instances.json")
    assert code == 0
    columns = ("image", "index", "id", "class_id", "class_name", "confidence")
    assert [tuple(row[name] for name in columns) for row in rows] == [
        ("images/a.png", 0, 73, 6, "square", None),
        ("images/more/d.png", 0, 71, 5, "triangle", 0.5),
        ("images/more/d.png", 1, 72, 5, "triangle", None),
    ]
    assert rows[0]["region"]["kind"] == "polygon"
    assert rows[2]["text"] is None
    assert "outside the image of 120 x 100 pixels" in rows[2]["error"]
    assert capsys.readouterr().err.splitlines() == [
        "patchcaption: note: 3 of 5 images have no regions in instances.json",
        "patchcaption: note: instances.json: 1 of its images are not among those given",
        f"patchcaption: note: 1 of 3 rows without a caption, the first: {rows[2]['error']}",
    ]


def test_results_are_regions_for_another_run(run: Run) -> None:
    Path("regions.json").write_text(json.dumps([[20, 20, 80, 80], {"kind": "point", "x": 50, "y": 50}]))
    _, first = run("--regions", "regions.json", out="first.parquet")
    _, second = run("--regions", "first.parquet", out="second.parquet")
    assert second == first


def test_an_image_that_cannot_be_read_is_one_row(run: Run) -> None:
    Path("images/b.png").write_bytes(b"\x89PNG nothing")
    Path("images/c.png").unlink()
    Path("list.txt").write_text("images/a.png\nimages/b.png\nimages/c.png\nimages/more\n")
    Path("regions.json").write_text(json.dumps([[20, 20, 80, 80], {"kind": "whole_image"}]))
    code, rows = run("--regions", "regions.json", images=["list.txt"])
    assert code == 0
    assert [(row["image"], row["index"]) for row in rows] == [
        ("images/a.png", 0), ("images/a.png", 1), ("images/b.png", None), ("images/c.png", None), ("images/more", None)
    ]  # fmt: skip
    assert all(row["error"].startswith(row["image"]) for row in rows[2:])
    assert all(row["region"] is row["text"] is row["score"] is None for row in rows[2:])


def test_a_run_without_any_caption_fails_and_says_why(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    code, rows = run(images=["lost.png", "gone.png"])
    assert code == 2
    assert len(rows) == 2
    assert capsys.readouterr().err == (
        "patchcaption: error: out.jsonl: none of its 2 rows has a caption: lost.png: no such file\n"
    )


def test_shards_share_the_images_and_write_files_of_their_own(run: Run, folder: Path) -> None:
    _, whole = run()
    rows = list[Any]()
    for number in (1, 2, 3):
        code, _ = run("--shard", f"{number}/3")
        assert code == 0
        rows += [json.loads(line) for line in (folder / f"out-{number}-of-3.jsonl").read_text().splitlines()]
    for row in (*rows, *whole):
        row["score"] = pytest.approx(row["score"], abs=1e-4)  # of sums in another order: the batches are others
    assert sorted(rows, key=lambda row: row["image"]) == whole


def test_results_that_are_there_are_not_made_again(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    run()
    time = Path("out.jsonl").stat().st_mtime_ns
    assert run()[0] == 0
    assert Path("out.jsonl").stat().st_mtime_ns == time
    assert "note: out.jsonl: it was done already; remove it to do it again" in capsys.readouterr().err
    shutil.copy("images/a.png", "images/f.png")
    assert len(run()[1]) == 6


def test_a_run_goes_on_where_one_with_other_options_does_not(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("runtime.batch.progress.BatchProgress.add", stop)
        assert run("--part-images", "2") == (130, [])
    assert [file.name for file in Path("out.jsonl.parts").glob("part*")] == ["part-000000.jsonl"]
    assert run("--part-images", "2", "--mode", "nearest") == (2, [])
    assert "with other options; run it again as it was, or remove out.jsonl.parts" in capsys.readouterr().err
    code, rows = run("--part-images", "2")
    assert (code, len(rows)) == (0, 5)
    assert capsys.readouterr().err == "patchcaption: note: out.jsonl: going on after 2 of 5 images\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--out", "out.csv"], "--out out.csv: expected a file that ends in .parquet, .jsonl, .ndjson"),
        (["--out", "lost/out.jsonl"], "lost/out.jsonl: the folder lost does not exist"),
        (["--shard", "0/3"], "argument --shard: expected N/COUNT with N from 1 to COUNT, such as 3/8, got '0/3'"),
        (["--shard", "4/3"], "argument --shard: expected N/COUNT"),
        (["--part-images", "0"], "--part-images: expected a whole number from 1 to 100000, got 0"),
        (["--actor-cpus", "2"], "--actor-cpus and --actor-gpus: they are for --ray"),
        (["--regions", "lost.json"], "lost.json: no such file"),
        (["--regions", "out.jsonl"], "--out out.jsonl: out.jsonl is read, and would be overwritten"),
        (["--beams", "0"], "argument --beams: beams: expected a whole number from 1"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(
    run: Run, folder: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    if "out.jsonl" in arguments:
        Path("out.jsonl").write_text("{}")
    before = set(folder.iterdir())
    code, _ = run(*arguments)
    assert code != 0
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert set(folder.iterdir()) == before


def test_progress_is_a_line_now_and_then_where_there_is_no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    now, lines = [100.0], list[str]()
    monkeypatch.setattr(progress, "monotonic", lambda: now[0])
    with progress.BatchProgress(1000, 200, lines.append) as shown:
        for _ in range(4):
            now[0] += 20
            shown.add(100)
    assert lines == ["50% 500/1000 [01:00<01:40,  5.00 images/s]"]


def test_progress_is_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with progress.BatchProgress(1000, 200, lambda _: None) as shown:
        shown.add(300)
    assert "500/1000" in capsys.readouterr().err


@pytest.mark.parametrize(("asked", "expected"), [("auto", "bf16"), ("fp32", "fp32"), ("bf16", "bf16")])
def test_the_measured_precision_is_looked_up_once_for_all_machines(
    run: Run, demo_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: str, expected: str
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    runs = [
        MeasuredRun(backend="cpu", precision="fp32", milliseconds=9.0),
        MeasuredRun(backend="openvino", precision="bf16", milliseconds=3.0),
    ]
    save_measurement(Bundle(demo_bundle, verify=False), Measurement(bundle="demo", runs=runs))
    found = []

    def record(_job: object, settings: CaptionerSettings, *_: object) -> None:
        found.append((settings.backend, settings.precision))
        raise PatchcaptionError("that is all")

    monkeypatch.setattr("runtime.cli.batch_command.run_batch", record)
    assert run("--precision", asked)[0] == 1
    assert found == [("auto", expected)]
