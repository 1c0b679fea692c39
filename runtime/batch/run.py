"""A run over many images, from the names to the file of results."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from runtime.batch.image_names import find_images
from runtime.batch.part_captioner import CaptionerSettings, PartCaptioner
from runtime.batch.plan import ALL, Plan, PlannedPart, Shard, write_plan
from runtime.batch.progress import BatchProgress
from runtime.batch.region_files import RegionEntry, read_regions
from runtime.batch.result_files import ResultFormat, RowCounts, result_format
from runtime.batch.run_folder import RunFolder
from runtime.bundle import sha256_of

PART_IMAGES = 256

DoneParts: TypeAlias = "Generator[tuple[int, bytes], None, None]"
"""The number of each part that is done, in any order, and the file of its rows."""
Executor: TypeAlias = Callable[[Iterable[PlannedPart], CaptionerSettings, ResultFormat], DoneParts]
"""Captions parts."""


@dataclass(frozen=True)
class BatchJob:
    """What is captioned, and where the results go.

    Attributes:
        images: names of files, folders, patterns and lists; see `find_images`.
        regions: the file of the regions; None for the whole of each image.
        out: the file of the results, .parquet or .jsonl; that of a shard is called NAME-1-of-8.parquet.
        shard: which of the images.
        part_images: how many images are a part, which is done whole or not at all.
    """

    images: Sequence[str]
    regions: Path | None
    out: Path
    shard: Shard = ALL
    part_images: int = PART_IMAGES

    @property
    def own_out(self) -> Path:
        """The file of results of this shard."""
        if self.shard.count == 1:
            return self.out
        return self.out.with_name(f"{self.out.stem}-{self.shard.number}-of-{self.shard.count}{self.out.suffix}")

    def facts(self, settings: CaptionerSettings) -> dict[str, Any]:
        """Return what the rows depend on, as JSON values by names that users know."""
        return {
            "bundle": settings.manifest_sha256,
            "images": list(self.images),
            "working directory": str(Path.cwd()),
            "regions": None if self.regions is None else _sha256_of(self.regions),
            "shard": [self.shard.number, self.shard.count],
            "part size": self.part_images,
            "fit": settings.fit.value,
            "precision": settings.precision,
            "options": dict(settings.options),
        }


@dataclass(frozen=True)
class BatchSummary:
    """What became of a run.

    Attributes:
        images: of the shard.
        counts: of the rows.
        was_done: whether the results were there already.
        num_without_regions: images that the file of regions says nothing of.
        num_unknown: images in the file of regions that are not among the images; None of a shard, where most are not.
    """

    out: Path
    images: int
    counts: RowCounts
    was_done: bool
    num_without_regions: int
    num_unknown: int | None


def run_batch(
    job: BatchJob, settings: CaptionerSettings, execute: Executor, note: Callable[[str], None]
) -> BatchSummary:
    """Caption the images of a job, or those of them that an earlier run has left.

    Args:
        note: takes what the user should know meanwhile, a line at a time.

    Raises:
        OptionError: the results have no such form, another run writes them, or one with other settings has begun to.
        ImageError: a name stands for no image.
        RegionError: the file of regions cannot be read.
        PatchcaptionError: the results cannot be written.
    """
    form = result_format(job.own_out)
    folder = RunFolder(job.own_out, form, job.facts(settings))
    with folder.held():
        plan_file = folder.plan(lambda file: _write_plan(file, job))
        with Plan(plan_file) as plan:
            unknown = plan.num_unknown if job.shard.count == 1 else None
            report = folder.finished(plan.sha256)
            if report is not None:
                folder.remove()
                counts = RowCounts(report["rows"], report["errors"], report["first_error"])
            else:
                _run_parts(job, settings, execute, note, folder, plan, form)
                counts = folder.finish(plan.num_parts(job.part_images), plan.sha256)
            return BatchSummary(
                job.own_out, plan.num_images, counts, report is not None, plan.num_without_regions, unknown
            )


def execute_here(parts: Iterable[PlannedPart], settings: CaptionerSettings, form: ResultFormat) -> DoneParts:
    """Caption parts in this process, one after another."""
    with PartCaptioner(settings) as captioner:
        for part in parts:
            yield part.number, form.encode(captioner.rows(part.images))


def _write_plan(file: Path, job: BatchJob) -> None:
    whole = [RegionEntry(None, [{"kind": "whole_image"}])]
    regions = whole if job.regions is None else read_regions(job.regions)
    write_plan(file, find_images(job.images), regions, job.shard, str(job.regions))


def _run_parts(
    job: BatchJob,
    settings: CaptionerSettings,
    execute: Executor,
    note: Callable[[str], None],
    folder: RunFolder,
    plan: Plan,
    form: ResultFormat,
) -> None:
    done = folder.done()
    num_parts = plan.num_parts(job.part_images)
    if len(done) == num_parts:
        return
    sizes = dict.fromkeys(range(num_parts), job.part_images)
    sizes[num_parts - 1] = plan.num_images - (num_parts - 1) * job.part_images
    done_images = sum(sizes[number] for number in done)
    if done:
        note(f"{job.own_out}: going on after {done_images} of {plan.num_images} images")
    finished = execute(plan.parts(job.part_images, done), settings, form)
    with BatchProgress(plan.num_images, done_images, note) as progress, closing(finished):
        for number, data in finished:
            folder.add(number, data)
            progress.add(sizes[number])


def _sha256_of(file: Path) -> str | None:
    """Return the sha256 of a file, or None where reading it will say what is wrong."""
    try:
        return sha256_of(file)
    except (OSError, ValueError):  # a ValueError for a name that no file can have
        return None
