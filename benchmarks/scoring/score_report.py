"""What an evaluation gives: its row in Markdown, with the paper's own row beside it, and everything as JSON."""

from __future__ import annotations

import json
import platform
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from typing import Any

from benchmarks.scoring.annotation_files import BoxNumbers
from benchmarks.scoring.dense_map import DenseMap
from benchmarks.scoring.evaluation import CaptionedImages, Evaluation
from benchmarks.scoring.metric_score import MetricScore
from benchmarks.scoring.predictions import PredictedImage
from benchmarks.scoring.published_rows import SOURCE, PublishedDataSet, PublishedRow, find_data_set, find_row
from benchmarks.scoring.scores import EvaluationScores
from runtime.bundle import MANIFEST, sha256_of
from runtime.system.machine import package_version

REGIONS = {"captions": "whole images", "dense": "boxes", "sets": "sets of boxes", "traces": "traces"}
"""What is captioned, by the kind of ground truth."""
_VERSIONS_OF = ("patchcaption", "torch", "numpy", "pillow", "pycocoevalcap")
_NONE = "–"
_DECIMALS = 3
"""To which the paper rounds scores, before it multiplies them by 100."""
_LEFT_COLUMNS = 2


@dataclass(frozen=True)
class ScoreReport:
    """The scores of an evaluation, and the paper's.

    Attributes:
        row: the paper's row of such a bundle; None where none is known.
        data_set: the paper's file that the ground truth may be; None for other data.
    """

    evaluation: Evaluation
    captioned: CaptionedImages
    scores: EvaluationScores
    row: PublishedRow | None
    data_set: PublishedDataSet | None

    @classmethod
    def of(cls, evaluation: Evaluation, captioned: CaptionedImages, scores: EvaluationScores) -> ScoreReport:
        """Return the report of scores, with the paper's row if there is one."""
        kind = evaluation.kind
        captions = scores.references if kind == "captions" else scores.captions  # one a region, but five an image
        data_set = find_data_set(kind, evaluation.truth[0].name, scores.images, captions)
        row = find_row(kind, data_set, captioned.manifest, evaluation.form)
        return cls(evaluation, captioned, scores, row, data_set)

    def markdown(self) -> str:
        """Return the table, and below it what one has to know to read it."""
        own, published = self.scores.metrics, self.row.scores if self.row else {}
        metrics = list(dict.fromkeys(chain(own, published)))
        rows = [
            ["scores x 100", "data", *metrics],
            [self._title(), self._data(), *(_with_std(own.get(name)) for name in metrics)],
        ]
        if self.row:
            name = self.data_set.name if self.data_set else "other data"
            rows.append([self.row.name, name, *(_published(published.get(name)) for name in metrics)])
        return "\n".join([*_table(rows), "", *(f"- {note}" for note in self._notes())]) + "\n"

    def json(self) -> Iterator[str]:
        """Yield all as JSON, piece by piece, the captions one image after another."""
        head = json.dumps(self._record(), indent=2, ensure_ascii=False)
        yield head.removesuffix("\n}") + ',\n  "captions": ['
        separator = "\n    "
        for image in self.captioned:
            for line in _caption_records(image):
                yield separator + json.dumps(line, ensure_ascii=False)
                separator = ",\n    "
        yield "\n  ]\n}\n"

    def _record(self) -> dict[str, Any]:
        """Return the scores and all that they depend on."""
        evaluation, scores = self.evaluation, self.scores
        versions = {name: package_version(name) for name in _VERSIONS_OF}
        return {
            "bundle": {
                "folder": str(evaluation.bundle_dir),
                "manifest_sha256": sha256_of(evaluation.bundle_dir / MANIFEST),
                "backbone": self.captioned.manifest.backbone.name,
                "image_size": self.captioned.manifest.backbone.preprocessing.image_size,
                "decoder": self.captioned.manifest.decoder.kind,
            },
            "ground_truth": {
                "kind": evaluation.kind,
                "files": {str(path): sha256_of(path) for path in evaluation.truth},
                "folders": [str(folder) for folder in evaluation.folders],
            },
            "options": {**asdict(evaluation.form), "fit": evaluation.fit, "limit": evaluation.limit},
            "clip": evaluation.clip,
            "backend": self.captioned.backend,
            "versions": {"python": platform.python_version()} | versions,
            "images": scores.images,
            "items": scores.captions,
            "unseen": scores.empty,
            "bad_images": dict(self.captioned.reasons),
            "scores": {name: asdict(score) for name, score in scores.metrics.items()},
            "dense": scores.dense and _dense_record(scores.dense),
            "published": self._published_record(),
        }

    def _published_record(self) -> dict[str, Any] | None:
        if self.row is None:
            return None
        return {
            "name": self.row.name,
            "source": SOURCE,
            "data": self.data_set.name if self.data_set else "other data",
            "scores_percent": dict(self.row.scores),
        }

    def _title(self) -> str:
        return f"{self.evaluation.bundle_dir}, {self._pool()}"

    def _pool(self) -> str:
        form = self.evaluation.form
        return f"{form.pool}" if form.variance is None else f"{form.pool} {form.variance:g}"

    def _data(self) -> str:
        return f"{self.scores.images} images, {self.scores.captions} {REGIONS[self.evaluation.kind]}"

    def _notes(self) -> Iterator[str]:
        yield f"published (paper): {self._comparison()}"
        evaluation, manifest = self.evaluation, self.captioned.manifest
        yield f"bundle: {manifest.backbone.name}, {manifest.decoder.kind}, on {self.captioned.backend}"
        files = ", ".join(map(str, evaluation.truth))
        yield f"ground truth: {files}, regions in the {evaluation.form.form} form, fit={evaluation.fit}"
        if self.scores.empty:
            yield f"empty: {self.scores.empty} regions have no caption and score 0"
        if reasons := self.captioned.reasons:
            yield f"bad images: {len(reasons)} are missing or cannot be read; their regions are among the empty ones"

    def _comparison(self) -> str:
        if self.row is None:
            backbone, pool = self.captioned.manifest.backbone, self._pool()
            side, regions = backbone.preprocessing.image_size, REGIONS[self.evaluation.kind]
            return f"no row is known for {backbone.name} @{side} with this decoder, on {regions} pooled by {pool}"
        if self.data_set is None:
            return "its row is of other data, so the two do not compare"
        return "the rows compare if this is the paper's file, of which only name and counts are known"


def _caption_records(image: PredictedImage) -> Iterator[dict[str, Any]]:
    boxes: dict[int, list[BoxNumbers]] = defaultdict(list)
    for one in image.annotations:
        boxes[one.item].append(one.box)
    for number, item in enumerate(image.items):
        record = {"image": image.id, "number": number, **asdict(item)}
        yield record | {"boxes": boxes[number]} if boxes else record


def _dense_record(dense: DenseMap) -> dict[str, Any]:
    by_both = dense.by_iou_and_meteor.items()
    return {
        "detections": dense.detections,
        "merged_boxes": dense.truth_count,
        "mAP": [{"iou": iou, "meteor": meteor, "ap": value} for (iou, meteor), value in by_both],
        "detmAP": [{"iou": iou, "ap": value} for iou, value in dense.by_iou.items()],
    }


def _with_std(score: MetricScore | None) -> str:
    if score is None:
        return _NONE
    return _percent(score.value) if score.std is None else f"{_percent(score.value)} ± {_percent(score.std)}"


def _percent(value: float) -> str:
    return f"{100 * round(value, _DECIMALS):.1f}"


def _published(percent: float | None) -> str:
    return _NONE if percent is None else f"{percent:g}"


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a Markdown table whose first row is its head, with columns as wide as their cells."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    head, *body = [_line(row, widths) for row in rows]
    rule = [f"{'-' * (width + 1)}{'-' if column < _LEFT_COLUMNS else ':'}" for column, width in enumerate(widths)]
    return [head, f"|{'|'.join(rule)}|", *body]


def _line(row: Sequence[str], widths: Sequence[int]) -> str:
    cells = (
        cell.ljust(width) if column < _LEFT_COLUMNS else cell.rjust(width)
        for column, (cell, width) in enumerate(zip(row, widths, strict=True))
    )
    return f"| {' | '.join(cells)} |"
