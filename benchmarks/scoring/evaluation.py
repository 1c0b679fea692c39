"""One evaluation of a bundle's captions against ground truth: its options, its predictions and its report."""

from __future__ import annotations

import platform
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from rich.table import Table

from benchmarks.scoring.ground_truth import READERS
from benchmarks.scoring.image_files import find_images
from benchmarks.scoring.predictions import Prediction, predict
from benchmarks.scoring.region_forms import RegionForm
from runtime import Captioner
from runtime.bundle import MANIFEST, sha256_of
from runtime.system.machine import package_version

_VERSIONS_OF = ("patchcaption", "torch", "numpy", "pillow", "pycocoevalcap")


@dataclass(frozen=True)
class Evaluation:
    """A bundle and the ground truth that it is scored against.

    Attributes:
        kind: "captions", "dense", "sets" or "traces".
        truth: the file of ground truth.
        folders: those of the images.
        limit: the number of images, the first of the file; None for all.
    """

    bundle_dir: Path
    kind: str
    truth: Path
    folders: tuple[Path, ...]
    form: RegionForm
    fit: Literal["stretch", "crop"]
    limit: int | None = None


@dataclass(frozen=True)
class Predictions:
    """All captions of an evaluation, the number of images, the backend, and the time that captioning took."""

    captions: tuple[Prediction, ...]
    images: int
    backend: str
    seconds: float

    @property
    def unseen(self) -> int:
        """The number of regions that the model does not see."""
        return sum(prediction.score is None for prediction in self.captions)


def run(evaluation: Evaluation) -> Predictions:
    """Caption every item of an evaluation.

    Raises:
        PatchcaptionError: the ground truth, an image or the bundle cannot be used.
    """
    images = READERS[evaluation.kind](evaluation.truth, evaluation.form)[: evaluation.limit]
    files = find_images(images, evaluation.folders)
    with Captioner.load(evaluation.bundle_dir, fit=evaluation.fit) as captioner:
        start = time.perf_counter()
        captions = predict(captioner, images, files)
        return Predictions(tuple(captions), len(images), captioner.backend.name, time.perf_counter() - start)


def to_record(evaluation: Evaluation, predictions: Predictions, scores: Mapping[str, float] | None) -> dict[str, Any]:
    """Return the scores and all that they depend on, with captions and references, as JSON takes it."""
    versions = {name: package_version(name) for name in _VERSIONS_OF}
    return {
        "bundle": {
            "folder": str(evaluation.bundle_dir),
            "manifest_sha256": sha256_of(evaluation.bundle_dir / MANIFEST),
        },
        "ground_truth": {
            "kind": evaluation.kind,
            "file": str(evaluation.truth),
            "sha256": sha256_of(evaluation.truth),
            "folders": [str(folder) for folder in evaluation.folders],
        },
        "options": {**asdict(evaluation.form), "fit": evaluation.fit, "limit": evaluation.limit},
        "backend": predictions.backend,
        "versions": {"python": platform.python_version()} | versions,
        "images": predictions.images,
        "unseen": predictions.unseen,
        "scores": scores,
        "captions": [asdict(prediction) for prediction in predictions.captions],
    }


def score_table(
    evaluation: Evaluation, predictions: Predictions, scores: Mapping[str, float], metrics_seconds: float
) -> Table:
    """Return the scores, below the facts of the evaluation."""
    form = evaluation.form
    facts = {
        "bundle": f"{evaluation.bundle_dir}, {predictions.backend}",
        "ground truth": str(evaluation.truth),
        "asked": f"{len(predictions.captions)} captions on {predictions.images} images ({evaluation.kind})",
        "regions": ", ".join(filter(None, (form.form, form.pool, f"fit={evaluation.fit}"))),
        "time": f"{predictions.seconds:.0f} s for the captions, {metrics_seconds:.0f} s for the metrics",
    }
    if predictions.unseen:
        facts["unseen"] = f"{predictions.unseen} regions that the model does not see count as empty captions"
    table = Table(show_header=False, title="captions against ground truth, scores x 100")
    for name, fact in facts.items():
        table.add_row(name, fact)
    table.add_section()
    for name, score in scores.items():
        table.add_row(name, f"{100 * score:.1f}")
    return table
