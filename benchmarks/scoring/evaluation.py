"""One scoring of a bundle's captions against ground truth: what was asked, what came, and how it is reported."""

from __future__ import annotations

import platform
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from rich.table import Table

from benchmarks.scoring.answers import Answer, answer
from benchmarks.scoring.ground_truth import READERS
from benchmarks.scoring.image_files import find_images
from benchmarks.scoring.region_forms import RegionForm
from runtime import Captioner
from runtime.bundle import MANIFEST, sha256_of

_VERSIONS_OF = ("patchcaption", "torch", "numpy", "pillow", "pycocoevalcap")


@dataclass(frozen=True)
class Evaluation:
    """What is scored.

    Attributes:
        engines: the bundle's folder.
        kind: "captions", "dense", "sets" or "traces".
        truth: the file of ground truth.
        folders: where the images lie.
        limit: how many images, the first of the file; None for all.
    """

    engines: Path
    kind: str
    truth: Path
    folders: tuple[Path, ...]
    form: RegionForm
    fit: Literal["stretch", "crop"]
    limit: int | None = None


@dataclass(frozen=True)
class Answers:
    """What a bundle answered: every caption, on how many images, by which backend and in what time."""

    captions: tuple[Answer, ...]
    images: int
    backend: str
    seconds: float

    @property
    def unseen(self) -> int:
        """How many regions the model does not see."""
        return sum(one.score is None for one in self.captions)


def caption(evaluation: Evaluation) -> Answers:
    """Captions everything that is to be scored.

    Raises:
        PatchcaptionError: the ground truth, an image or the bundle cannot be used.
    """
    images = READERS[evaluation.kind](evaluation.truth, evaluation.form)[: evaluation.limit]
    files = find_images(images, evaluation.folders)
    with Captioner.load(evaluation.engines, fit=evaluation.fit) as captioner:
        start = time.perf_counter()
        captions = answer(captioner, images, files)
        return Answers(tuple(captions), len(images), captioner.backend.name, time.perf_counter() - start)


def record(evaluation: Evaluation, answers: Answers, scores: Mapping[str, float] | None) -> dict[str, Any]:
    """All that the scores came from, with the captions and their references, as JSON takes it."""
    return {
        "bundle": {
            "folder": str(evaluation.engines),
            "manifest_sha256": sha256_of(evaluation.engines / MANIFEST),
        },
        "ground_truth": {
            "kind": evaluation.kind,
            "file": str(evaluation.truth),
            "sha256": sha256_of(evaluation.truth),
            "folders": [str(folder) for folder in evaluation.folders],
        },
        "options": {**asdict(evaluation.form), "fit": evaluation.fit, "limit": evaluation.limit},
        "backend": answers.backend,
        "versions": {"python": platform.python_version()} | {name: metadata.version(name) for name in _VERSIONS_OF},
        "images": answers.images,
        "unseen": answers.unseen,
        "scores": scores,
        "captions": [asdict(one) for one in answers.captions],
    }


def table(evaluation: Evaluation, answers: Answers, scores: Mapping[str, float], metrics_seconds: float) -> Table:
    """The scores, under what they are of."""
    form = evaluation.form
    facts = {
        "bundle": f"{evaluation.engines}, {answers.backend}",
        "ground truth": str(evaluation.truth),
        "asked": f"{len(answers.captions)} captions on {answers.images} images ({evaluation.kind})",
        "regions": ", ".join(filter(None, (form.form, form.pool, f"fit={evaluation.fit}"))),
        "time": f"{answers.seconds:.0f} s for the captions, {metrics_seconds:.0f} s for the metrics",
    }
    if answers.unseen:
        facts["unseen"] = f"{answers.unseen} regions that the model does not see count as empty captions"
    made = Table(show_header=False, title="captions against ground truth, scores x 100")
    for name, fact in facts.items():
        made.add_row(name, fact)
    made.add_section()
    for name, score in scores.items():
        made.add_row(name, f"{100 * score:.1f}")
    return made
