"""`patchcaption batch`: captions of many images, into one file."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import cast

from runtime.backends import BACKENDS, Selection, select_backend
from runtime.batch.part_captioner import CaptionerSettings
from runtime.batch.plan import ALL, Shard
from runtime.batch.ray_cluster import RayExecutor
from runtime.batch.run import PART_IMAGES, BatchJob, BatchSummary, Executor, execute_here, run_batch
from runtime.bundle import Bundle
from runtime.cli import exits
from runtime.cli.bundle_arguments import add_bundle_flag
from runtime.cli.captioner_arguments import (
    add_captioner_flags,
    add_decoding_flags,
    add_mode_flag,
    decoding_keywords,
)
from runtime.cli.region_arguments import argument_type
from runtime.errors import OptionError, PatchcaptionError, RegionError
from runtime.hub import exact_name, open_bundle
from runtime.image import Fit
from runtime.options import DescribeKeywords, check_number, check_threads
from runtime.system.outputs import Output, check_distinct

_MAX_SHARDS = 1_000_000
_MAX_PART_IMAGES = 100_000
_MAX_GPUS = 64


def add_batch(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.set_defaults(run=run_batch_command)
    parser.add_argument(
        "images",
        nargs="+",
        metavar="IMAGES",
        help="images, folders with all folders in them, patterns in quotes (** stands for any folders), and lists of "
        "images, one a line, in files that end in .txt (- is stdin)",
    )
    add_bundle_flag(parser, "the bundle", required=True)
    parser.add_argument(
        "--regions",
        type=Path,
        metavar="FILE",
        help="a JSON list for every image; or regions by image: .jsonl, .parquet, .csv, a data set in COCO's form, "
        "detections of supervision (default: the whole of each image)",
    )
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="FILE",
        help=".parquet or .jsonl, a row a region; the parts that are done are in FILE.parts meanwhile, and a run that "
        "was ended goes on from there when it is started again",
    )
    parser.add_argument(
        "--shard",
        type=argument_type(_shard),
        default=ALL,
        metavar="N/COUNT",
        help="caption one of COUNT shares of the images, from 1 on, into a file of its own",
    )
    parser.add_argument(
        "--part-images",
        type=int,
        default=PART_IMAGES,
        metavar="N",
        help="images that are done whole or not at all (default: %(default)s)",
    )
    add_mode_flag(parser)
    add_decoding_flags(parser)
    add_captioner_flags(parser)
    _add_cluster_flags(parser)


def run_batch_command(options: argparse.Namespace) -> int:
    """Caption the images, and say what became of them."""
    job = BatchJob(options.images, options.regions, options.out, options.shard, options.part_images)
    check_number("--part-images", job.part_images, 1, _MAX_PART_IMAGES, whole=True)
    Output(job.own_out).check()
    check_distinct({"--out": Output(job.own_out)}, [] if job.regions is None else [job.regions])
    bundle = open_bundle(options.bundle, verify=False)
    summary = run_batch(job, _settings(options, bundle), _executor(options, bundle), exits.note)
    _report(summary, options)
    return exits.DONE


def _add_cluster_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group(
        "cluster",
        "by Ray, with the extra [ray]; images, regions and bundle have to be at the same place on all machines",
    )
    group.add_argument("--ray", metavar="ADDRESS", help="a cluster: HOST:PORT, auto, or local for one on this machine")
    group.add_argument(
        "--actor-cpus",
        type=int,
        metavar="N",
        help="processor cores for each process that has loaded the bundle (default: those of the smallest machine, at "
        "most 4)",
    )
    group.add_argument(
        "--actor-gpus", type=float, metavar="N", help="GPUs for each (default: 1 with a backend of GPUs, else 0)"
    )


def _executor(options: argparse.Namespace, bundle: Bundle) -> Executor:
    cpus, gpus = options.actor_cpus, options.actor_gpus
    if options.ray is None:
        if cpus is not None or gpus is not None:
            raise OptionError("--actor-cpus and --actor-gpus: they are for --ray")
        return execute_here
    if cpus is not None:
        check_threads("--actor-cpus", cpus)
    if gpus is None:
        gpus = float(BACKENDS[_selection(options, bundle).backend].device == "cuda")
    check_number("--actor-gpus", gpus, 0, _MAX_GPUS)
    return RayExecutor(options.ray, cpus, gpus)


def _selection(options: argparse.Namespace, bundle: Bundle) -> Selection:
    return select_backend(bundle, options.precision, name=options.backend)


def _settings(options: argparse.Namespace, bundle: Bundle) -> CaptionerSettings:
    return CaptionerSettings(
        exact_name(options.bundle),
        bundle.manifest_sha256(),
        options.backend,
        Fit(options.fit),
        _selection(options, bundle).precision,  # one for all machines and for runs that go on later
        options=cast(DescribeKeywords, {"mode": options.mode, **decoding_keywords(options)}),
    )


def _shard(text: str) -> Shard:
    found = re.fullmatch(r"(\d{1,7})/(\d{1,7})", text)
    number, count = (int(found[1]), int(found[2])) if found else (0, 0)
    if not 1 <= number <= count <= _MAX_SHARDS:
        raise PatchcaptionError(f"expected N/COUNT with N from 1 to COUNT, such as 3/8, got {text!r}")
    return Shard(number, count)


def _report(summary: BatchSummary, options: argparse.Namespace) -> None:
    """Say what became of the images.

    Raises:
        RegionError: none has a caption.
    """
    counts = summary.counts
    if summary.was_done:
        exits.note(f"{summary.out}: it was done already; remove it to do it again")
    if summary.num_without_regions:
        exits.note(f"{summary.num_without_regions} of {summary.images} images have no regions in {options.regions}")
    if summary.num_unknown:
        exits.note(f"{options.regions}: {summary.num_unknown} of its images are not among those given")
    if counts.errors and counts.errors == counts.rows:
        raise RegionError(f"{summary.out}: none of its {counts.rows} rows has a caption: {counts.first_error}")
    if counts.errors:
        exits.note(f"{counts.errors} of {counts.rows} rows without a caption, the first: {counts.first_error}")
    print(f"{summary.out}: {counts.rows} rows of {summary.images} images")
