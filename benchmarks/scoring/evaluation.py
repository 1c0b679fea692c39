"""One evaluation of a bundle's captions against ground truth: what it depends on, and its captions, image by image."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.progress import track

from benchmarks.scoring.ground_truth import AnnotatedImage, read_parts
from benchmarks.scoring.image_files import find_images, missing_images
from benchmarks.scoring.image_text import ImageTextScorer
from benchmarks.scoring.prediction_log import EvaluationLogError, Job, PredictionLog, open_log
from benchmarks.scoring.predictions import BadImage, PredictedImage, predict
from benchmarks.scoring.region_forms import RegionForm
from runtime import Captioner
from runtime.bundle import MANIFEST, Manifest, sha256_of
from runtime.options import Score
from runtime.system.machine import package_version
from runtime.system.outputs import Note, Output
from runtime.system.user_dirs import cache_file, make_private

_IMAGES_AT_ONCE = 8


@dataclass(frozen=True)
class Evaluation:
    """A bundle and the ground truth that it is scored against.

    Attributes:
        kind: "captions", "dense", "sets" or "traces".
        truth: the file of ground truth, or its parts.
        folders: those of the images.
        form: its pool and variance are set.
        limit: the number of images, the first of the file; None for all.
        scorer: scores how well captions and images fit; None leaves that out.
    """

    bundle_dir: Path
    kind: str
    truth: tuple[Path, ...]
    folders: tuple[Path, ...]
    form: RegionForm
    fit: Literal["stretch", "crop"]
    limit: int | None = None
    scorer: ImageTextScorer | None = None

    @property
    def score(self) -> Score:
        """Which score of a caption ranks it: the published one where ranks count and the form is the published one."""
        return "reference" if self.kind == "dense" and self.form.form == "published" else "natural"

    @property
    def clip(self) -> dict[str, str]:
        """The weights that score how well captions and images fit, by metric."""
        return {metric: model.identity for metric, model in self.scorer.models.items()} if self.scorer else {}

    def job(self, backend: str) -> Job:
        """Return all that the captions depend on."""
        return {
            "bundle": sha256_of(self.bundle_dir / MANIFEST),
            "backend": backend,
            "ground truth": [sha256_of(path) for path in self.truth],
            "folder of images": [str(folder.resolve()) for folder in self.folders],
            "--kind": self.kind,
            "--form": self.form.form,
            "--box-format": self.form.box_format,
            "--pool": self.form.pool,
            "--variance": self.form.variance,
            "--fit": self.fit,
            "--limit": self.limit,
            "CLIP": self.clip,
            "version of patchcaption": package_version("patchcaption"),
        }


@dataclass(frozen=True)
class CaptionedImages:
    """The captions of an evaluation, which stay in its log.

    Attributes:
        ids: the images, in the order of the ground truth.
        bad: what stands for each image that is missing or cannot be read, by id.
        reasons: why, by id.
        manifest: the bundle's.
        backend: the name of what executed it.
        seconds: the time that captioning took in this run.
    """

    log: PredictionLog
    ids: tuple[str, ...]
    bad: Mapping[str, PredictedImage]
    reasons: Mapping[str, str]
    manifest: Manifest
    backend: str
    seconds: float

    def __iter__(self) -> Iterator[PredictedImage]:
        """Yield the captions of every image, one image in memory at a time."""
        for image in self.ids:
            yield self.bad[image] if image in self.bad else self.log.read(image)


@contextmanager
def caption_images(evaluation: Evaluation, output: Output | None, note: Note) -> Iterator[CaptionedImages]:
    """Caption every item of an evaluation, from where an earlier run of it was interrupted.

    The log lies beside ``output`` if that is a file, else in the user's cache. It is removed at the end of the block if
    every image has captions; after an exception it stays.

    Args:
        note: is told of images that are missing and of what is taken over.

    Raises:
        PatchcaptionError: the ground truth, the bundle or the log cannot be used.
    """
    with (
        read_parts(evaluation.kind, evaluation.truth, evaluation.form) as images,
        Captioner.load(evaluation.bundle_dir, fit=evaluation.fit) as captioner,
    ):
        ids = tuple(islice(images, evaluation.limit))
        files = find_images((images[image] for image in ids), evaluation.folders)
        if files.missing:
            note(missing_images(files.missing, len(ids), evaluation.folders))
        job = evaluation.job(captioner.backend.name)
        with open_log(_log_file(output, job), job) as log:
            if len(log):
                note(f"{log.path}: an earlier run has left {len(log)} of {len(ids)} images; going on from there")
            start = time.perf_counter()
            bad = {image: f"no file {names}" for image, names in files.missing.items()}
            bad |= _caption_rest(captioner, images, ids, files.found, log, evaluation)
            yield CaptionedImages(
                log=log,
                ids=ids,
                bad={image: PredictedImage.without_captions(images[image]) for image in ids if image in bad},
                reasons=bad,
                manifest=captioner.manifest,
                backend=captioner.backend.name,
                seconds=time.perf_counter() - start,
            )
            if not bad:
                log.remove()


def _caption_rest(
    captioner: Captioner,
    images: Mapping[str, AnnotatedImage],
    ids: Sequence[str],
    files: Mapping[str, Path],
    log: PredictionLog,
    evaluation: Evaluation,
) -> dict[str, str]:
    """Caption the images that the log does not have, and return why some have no captions.

    The images of a pass are always the same, as captions may depend on it in their last bits: a pass that was cut short
    is done again.
    """
    bad: dict[str, str] = {}
    starts = range(0, len(ids), _IMAGES_AT_ONCE)
    for start in track(starts, "captioning", console=Console(stderr=True), transient=True):
        batch = [image for image in ids[start : start + _IMAGES_AT_ONCE] if image in files]
        if all(image in log for image in batch):
            continue
        annotated = [images[image] for image in batch]
        for result in predict(captioner, annotated, files, evaluation.score, evaluation.scorer):
            if isinstance(result, BadImage):
                bad[result.id] = result.reason
            elif result.id not in log:
                log.append(result)
    return bad


def _log_file(output: Output | None, job: Job) -> Path:
    if output is not None and output.is_file:
        file = Path(str(output))
        return file.with_name(f".{file.name}.part")
    digest = hashlib.sha256(json.dumps(job, sort_keys=True).encode()).hexdigest()
    file_or_none = cache_file("evaluations", f"{digest[:32]}.jsonl")
    if file_or_none is None:
        raise EvaluationLogError("the user has no cache folder of their own to keep captions in: give --json OUT")
    try:
        make_private(file_or_none.parent)
    except OSError as error:
        raise EvaluationLogError(f"{file_or_none.parent}: cannot be made: {error.strerror}; give --json OUT") from None
    return file_or_none
