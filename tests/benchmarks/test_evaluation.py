"""An evaluation that is interrupted goes on where it was, and one bad image or a full disk does not spoil it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from benchmarks import quality
from benchmarks.scoring import prediction_log
from benchmarks.scoring.ground_truth import BoxAnnotation
from benchmarks.scoring.image_text import METRICS
from benchmarks.scoring.image_text_models import ImageTextModel
from benchmarks.scoring.metrics import CaptionMetrics
from benchmarks.scoring.prediction_log import EvaluationLogError, open_log
from benchmarks.scoring.predictions import PredictedImage, Prediction
from export.demo.annotations import write_annotations
from runtime import Captioner
from tests.children import run_module

JOB = {"bundle": "a1", "ground truth": "b2", "--pool": "mean", "--limit": None}
BOXES = (BoxAnnotation((1.0, 2.0, 3.5, 4.0), "hat", 0), BoxAnnotation((1.0, 2.0, 3.0, 4.0), "hat\nhood", 0))
IMAGES = [
    PredictedImage("1", (Prediction("a cat — 猫", 0.5, ("a cat", "a tom")), Prediction("", None, ("a\u2028dog",)))),
    PredictedImage("x/2", (Prediction("a hat", 0.25, ("hat",), {"CLIP-S": 0.75}),), BOXES),
    PredictedImage("3", (Prediction('a "mat"\n', 1e-9, ("a mat",)),)),
]


def written(path: Path, images: list[PredictedImage]) -> bytes:
    with open_log(path, JOB) as log:
        for image in images:
            if image.id not in log:
                log.append(image)
    return path.read_bytes()


def test_a_log_gives_back_what_was_written(tmp_path: Path) -> None:
    written(tmp_path / "log", IMAGES)
    with open_log(tmp_path / "log", JOB) as log:
        assert len(log) == 3
        assert [log.read(image.id) for image in reversed(IMAGES)] == IMAGES[::-1]
        log.remove()
    assert list(tmp_path.iterdir()) == []


def test_a_log_that_ends_anywhere_goes_on_to_the_same_log(tmp_path: Path) -> None:
    path = tmp_path / "log"
    whole = written(path, IMAGES)
    for end in range(len(whole)):
        path.write_bytes(whole[:end])
        assert written(path, IMAGES) == whole, end


@pytest.mark.parametrize(
    ("contents", "reason"),
    [
        (b"my thesis\n", "another program has written it"),
        (b"my thesis", "another program has written it"),
        (b'{"captions": []}\n', "another program has written it"),
        (b"[1]\n", "another program has written it"),
        (b"\xff\xfe\n", "another program has written it"),
        (json.dumps({"evaluation": JOB}).encode() + b"\n{}\n", "line 2 is not what an image's line is"),
        (
            json.dumps({"evaluation": JOB | {"--pool": "attention", "bundle": "c3"}}).encode() + b"\n",
            "it was begun with another bundle, --pool; finish it with that, or remove it",
        ),
    ],
)
def test_a_log_of_something_else_is_refused_and_left_as_it_is(tmp_path: Path, contents: bytes, reason: str) -> None:
    path = tmp_path / "log"
    path.write_bytes(contents)
    with pytest.raises(EvaluationLogError, match=reason), open_log(path, JOB):
        pass
    assert path.read_bytes() == contents


def test_a_log_has_one_writer(tmp_path: Path) -> None:
    reason = "another run is at work there; wait for its end"
    with open_log(tmp_path / "log", JOB), pytest.raises(EvaluationLogError, match=reason):
        written(tmp_path / "log", IMAGES)


@pytest.fixture(scope="module")
def annotated_scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes") / "twenty"
    write_annotations(folder, 20)
    return folder


def run(bundle: Path, folder: Path, *more: str | Path) -> int:
    truth = ["--annotations", folder / "dense.json", "--kind", "dense", "--images", folder / "images"]
    return quality.main([str(bundle), *map(str, [*truth, *more])])


@pytest.mark.slow
def test_a_run_that_was_killed_at_random_moments_ends_as_a_whole_one(
    demo_bundle: Path, annotated_scenes: Path, tmp_path: Path
) -> None:
    out, whole = tmp_path / "out.json", tmp_path / "whole.json"
    module = "tests.benchmarks.killed_evaluation"
    printed = run_module(module, demo_bundle, annotated_scenes, out, whole, "12", "1")
    assert int(printed.splitlines()[-1]) >= 4
    assert out.read_bytes() == whole.read_bytes()
    assert sorted(tmp_path.iterdir()) == [out, whole]


def test_without_a_file_for_json_the_captions_are_kept_in_the_cache(
    demo_bundle: Path, annotated_scenes: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(CaptionMetrics, "score", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run(demo_bundle, annotated_scenes, "--limit", "3")
    assert len(list(cache.iterdir())) == 1
    assert cache.stat().st_mode & 0o77 == 0
    monkeypatch.setattr(Captioner, "encode", None)
    assert run(demo_bundle, annotated_scenes, "--limit", "3") == 0
    assert list(cache.iterdir()) == []


@pytest.mark.slow
@pytest.mark.usefixtures("cache")
def test_bad_images_are_counted_and_tried_again_by_the_same_command(
    demo_bundle: Path, annotated_scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, out = tmp_path / "scenes", tmp_path / "row.json"
    shutil.copytree(annotated_scenes, folder)
    missing, broken = (folder / "images" / f"{number:012d}.png" for number in (3, 12))
    kept = {path: path.read_bytes() for path in (missing, broken)}
    missing.unlink()
    broken.write_bytes(kept[broken][:999])

    assert run(demo_bundle, folder, "--json", out) == 1
    printed = capsys.readouterr()
    assert "1 of 20 images are missing" in printed.err
    assert "2 of 20 images have no captions, and their regions score 0: 3: no file" in printed.err
    assert f"12: {broken}" in printed.err
    assert "bad images: 2" in printed.out
    spoiled = json.loads(out.read_text())
    assert set(spoiled["bad_images"]) == {"3", "12"}
    assert {one["caption"] for one in spoiled["captions"] if one["image"] in ("3", "12")} == {""}
    assert spoiled["images"] == 20

    for path, contents in kept.items():
        path.write_bytes(contents)
    assert run(demo_bundle, folder, "--json", out) == 0
    assert "an earlier run has left 18 of 20 images" in capsys.readouterr().err
    mended = json.loads(out.read_text())
    assert mended["bad_images"] == {}
    assert mended["scores"]["exact"]["value"] > spoiled["scores"]["exact"]["value"]
    assert run(demo_bundle, folder, "--json", tmp_path / "whole.json") == 0
    assert texts(mended) == texts(json.loads((tmp_path / "whole.json").read_text()))
    assert sorted(tmp_path.glob(".*")) == []


def texts(record: dict[str, Any]) -> list[tuple[str, int, str]]:
    return [(one["image"], one["number"], one["caption"]) for one in record["captions"]]


@pytest.mark.usefixtures("cache")
def test_a_full_disk_is_told_and_the_same_command_goes_on(
    demo_bundle: Path,
    annotated_scenes: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "row.json"
    with monkeypatch.context() as patch:
        patch.setattr(prediction_log, "write_whole", FullDisk(3000).write)
        assert run(demo_bundle, annotated_scenes, "--json", out) == 1
    assert (
        capsys.readouterr().err.strip()
        == f"error: {tmp_path}/.row.json.part: cannot be written: No space left on device"
    )
    assert not out.exists()
    assert run(demo_bundle, annotated_scenes, "--json", out) == 0
    assert "an earlier run has left" in capsys.readouterr().err
    assert len(json.loads(out.read_text())["captions"]) > 40


class FullDisk:
    """A disk that has so many bytes left."""

    def __init__(self, left: int) -> None:
        self.left = left

    def write(self, file: Any, data: bytes) -> None:
        file.write(data[: self.left])
        if len(data) > self.left:
            raise OSError(28, "No space left on device")
        self.left -= len(data)


@pytest.mark.usefixtures("cache")
def test_a_log_of_other_options_beside_the_output_is_refused(
    demo_bundle: Path, annotated_scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "row.json"
    with open_log(tmp_path / ".row.json.part", JOB):
        pass
    assert run(demo_bundle, annotated_scenes, "--json", out) == 1
    error = capsys.readouterr().err
    assert f"{tmp_path}/.row.json.part: it was begun with another bundle, ground truth" in error
    assert len(error.splitlines()) == 1


@pytest.mark.usefixtures("cache")
def test_the_record_goes_to_stdout_and_the_row_then_to_stderr(
    demo_bundle: Path, annotated_scenes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(demo_bundle, annotated_scenes, "--limit", "2", "--json", "-") == 0
    printed = capsys.readouterr()
    record = json.loads(printed.out)
    assert record["scores"]["detmAP"]["value"] == 1
    assert len(record["dense"]["mAP"]) == 30
    truth = json.loads((annotated_scenes / "dense.json").read_text())
    boxes = [box for image in list(truth.values())[:2] for own in image.values() for box in own]
    assert [box for one in record["captions"] for box in one["boxes"]] == boxes
    assert "| scores x 100" in printed.err


@pytest.mark.slow
@pytest.mark.usefixtures("cache")
def test_image_text_scores_are_those_of_a_whole_run_after_an_interruption(
    demo_bundle: Path, annotated_scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[tuple[str, str]] = []

    def load(weights: str, flag: str, _: str) -> ImageTextModel:
        loaded.append((weights, flag))
        return ImageTextModel(16, lambda pixels: pixels[:, :, 0].flatten(1).float() + 1, words, f"{weights} abc")

    monkeypatch.setattr(quality, "load_image_text_model", load)
    (annotated_scenes / "images" / "000000000004.png").rename(tmp_path / "missing.png")
    arguments = ["--clip", "ViT-B-32.pt", "--pac", "pac.pth", "--json"]
    records = []
    try:
        with monkeypatch.context() as patch:
            patch.setattr(prediction_log, "write_whole", FullDisk(9000).write)
            assert run(demo_bundle, annotated_scenes, *arguments, tmp_path / "one.json") == 1
        for name in ("one.json", "other.json"):
            assert run(demo_bundle, annotated_scenes, *arguments, tmp_path / name) == 1  # for the missing image
            records.append(json.loads((tmp_path / name).read_text()))
    finally:
        (tmp_path / "missing.png").rename(annotated_scenes / "images" / "000000000004.png")
    assert loaded[:2] == [("ViT-B-32.pt", "--clip"), ("pac.pth", "--pac")]
    assert records[0] == records[1]
    assert list(records[0]["scores"])[-len(METRICS) :] == list(METRICS)
    values = [one["image_text"].get("CLIP-S", 0.0) for one in records[0]["captions"]]
    assert {one["image"] for one in records[0]["captions"] if not one["image_text"]} == {"4"}
    assert records[0]["scores"]["CLIP-S"]["value"] == pytest.approx(np.mean(values))
    assert records[0]["clip"] == {"CLIP-S": "ViT-B-32.pt abc", "PAC-S": "pac.pth abc"}


def words(texts: Sequence[str]) -> Tensor:
    """Return an embedding (B, 48) of texts by their letters, for images of side 16 of which a column is seen."""
    return torch.stack([torch.bincount(torch.tensor([ord(one) % 48 for one in text]), minlength=48) for text in texts])
