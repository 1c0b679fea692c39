"""Score a bundle's captions: `python benchmarks/quality.py engines/demo`.

Without more arguments on held-out demo scenes, whose right captions are known (`scoring.demo_scenes`). With images and
a file of ground truth, as the paper does, with the paper's own row beside the bundle's (docs/evaluation.md):

    python benchmarks/quality.py BUNDLE --annotations coco-test.json --images coco/val2014
    python benchmarks/quality.py BUNDLE --annotations coco_entities_test.json --kind sets --images FOLDER --json OUT

Data flow one way: annotations -> items -> log of predictions -> scores -> rows. The same command goes on where it was
interrupted.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

if not __package__:  # run by its path: the packages of this clone, whatever is installed
    sys.path.insert(0, str(Path(__file__).parents[1]))

from rich.table import Table

from benchmarks.scoring.annotation_kinds import KINDS, recognize_kind
from benchmarks.scoring.demo_scenes import score_scenes
from benchmarks.scoring.evaluation import CaptionedImages, Evaluation, caption_images
from benchmarks.scoring.image_text import ImageTextScorer
from benchmarks.scoring.image_text_models import CLIP_WEIGHTS, PAC_FILE, ImageTextModel, load_image_text_model
from benchmarks.scoring.metrics import CaptionMetrics
from benchmarks.scoring.published_rows import PUBLISHED_POOLS, PUBLISHED_VARIANCE
from benchmarks.scoring.region_forms import POOLS, RegionForm
from benchmarks.scoring.score_report import ScoreReport
from benchmarks.scoring.scores import score_captions
from export.command_line import EXIT_FAILED, bundle_folder, print_error, print_note, run_command, show_result
from export.demo.scenes import HELD_OUT_SEED
from runtime import Captioner, PatchcaptionError
from runtime.system.files import write_atomically
from runtime.system.outputs import Output, check_distinct, write_whole
from runtime.system.standard_streams import show

_OF_GROUND_TRUTH = ("images", "kind", "limit", "pool", "variance", "markdown", "spice", "corenlp", "clip", "pac")
"""Options that demo scenes do not have."""
_MAX_NAMED = 3
"""Bad images that an error names."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    parser = argparse.ArgumentParser(description="Score a bundle's captions, on demo scenes or against ground truth.")
    add_arguments(parser)
    options = parser.parse_args(arguments)
    if options.annotations:
        interrupted = "interrupted; the same command goes on from here"
        return run_command(partial(_score_ground_truth, options), interrupted=interrupted)
    return run_command(partial(_score_scenes, options))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the bundle, the ground truth and the regions that are made of it, the metrics, and the outputs."""
    parser.add_argument(
        "bundle", type=bundle_folder, nargs="?", default=Path("engines/demo"), help="default: %(default)s"
    )
    parser.add_argument("--json", type=Output, metavar="OUT", help="also write scores, settings and captions as JSON")
    parser.add_argument("--markdown", type=Output, metavar="OUT", help="also write the table to this file")
    parser.add_argument("--scenes", type=int, help="how many held-out demo scenes, without --images (default: 300)")
    truth = parser.add_argument_group("ground truth")
    truth.add_argument(
        "--annotations",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="captions, boxes, sets of boxes or traces; given several times, its parts",
    )
    truth.add_argument(
        "--images",
        type=Path,
        action="append",
        metavar="FOLDER",
        help="where the images lie; may be given several times",
    )
    truth.add_argument(
        "--kind", choices=KINDS, help="what FILE holds, where that may be meant two ways: boxes by caption"
    )
    truth.add_argument("--box-format", choices=("xyxy", "xywh"), default="xyxy", help="default: xyxy")
    truth.add_argument("--limit", type=int, metavar="N", help="the first N images of the file")
    truth.add_argument(
        "--form",
        choices=("published", "exact"),
        default="published",
        help="regions by the paper's settings and rounding, or as covered (default: published)",
    )
    truth.add_argument("--fit", choices=("stretch", "crop"), default="stretch", help="default: stretch, as published")
    truth.add_argument(
        "--pool",
        help="how the patches of a region count: mean, gaussian, attention, count, cls (default, published: mean for "
        "boxes, count for traces, gaussian for whole images)",
    )
    truth.add_argument("--variance", type=float, help="of --pool gaussian (default, published: 1)")
    metrics = parser.add_argument_group("metrics, beside those of texts and boxes")
    metrics.add_argument("--spice", action="store_true", help="SPICE; it downloads CoreNLP the first time")
    metrics.add_argument("--corenlp", type=Path, metavar="FOLDER", help="where CoreNLP 3.6.0 is, instead of a download")
    metrics.add_argument(
        "--clip", metavar="WEIGHTS", help=f"CLIP-S, by these weights: {CLIP_WEIGHTS} of the hub, a file"
    )
    metrics.add_argument("--pac", metavar="WEIGHTS", help=f"PAC-S and RefPAC-S, by these weights: {PAC_FILE}")
    metrics.add_argument("--device", default="cpu", help="where CLIP runs: cpu (default), cuda")


def _check(options: argparse.Namespace) -> None:
    """Check that options go together and outputs can be written.

    Raises:
        PatchcaptionError: they do not.
    """
    if options.annotations and not options.images:
        raise PatchcaptionError("expected --images with --annotations")
    for name in _OF_GROUND_TRUTH if not options.annotations else ("scenes",):
        if getattr(options, name):
            raise PatchcaptionError(f"expected {'no ' if options.annotations else ''}--annotations with --{name}")
    for name in ("limit", "scenes"):
        count = getattr(options, name)
        if count is not None and count < 1:
            raise PatchcaptionError(f"--{name}: expected at least 1, got {count}")
    outputs = {"--json": options.json, "--markdown": options.markdown}
    for output in filter(None, outputs.values()):
        output.check()
    check_distinct(outputs, options.annotations)


def _score_scenes(options: argparse.Namespace) -> None:
    _check(options)
    count = options.scenes or 300
    with Captioner.load(options.bundle) as captioner:
        scores = score_scenes(captioner, HELD_OUT_SEED, count)
        table = Table(title=f"{options.bundle} on {count} held-out scenes, {captioner.backend.name}")
    for heading in ("region", "captions", "colour and shape", "every word"):
        table.add_column(heading, justify="left" if heading == "region" else "right")
    for kind, score in scores.items():
        named = "" if score.named is None else f"{score.named:.1%}"
        table.add_row(kind, str(score.asked), named, f"{score.exact:.1%}")
    if options.json:
        record: dict[str, Any] = {"scenes": count, "first_seed": HELD_OUT_SEED}
        record["scores"] = {kind: asdict(score) for kind, score in scores.items()}
        options.json.write(json.dumps(record, indent=2, ensure_ascii=False).encode() + b"\n")
    show_result(table)


def _score_ground_truth(options: argparse.Namespace) -> int:
    """Score a bundle against a file of ground truth; return 1 if images of it have no captions."""
    _check(options)
    evaluation = _evaluation(options)
    metrics = CaptionMetrics(options.spice, options.corenlp)
    metrics.check()
    with caption_images(evaluation, options.json, print_note) as captioned:
        start = time.perf_counter()
        report = ScoreReport.of(
            evaluation, captioned, score_captions(captioned, metrics, is_dense=evaluation.kind == "dense")
        )
        seconds = f"{captioned.seconds:.0f} s for the captions, {time.perf_counter() - start:.0f} s for the metrics"
        if options.json:
            _write(options.json, report.json())
        if options.markdown:
            _write(options.markdown, [report.markdown()])
        _show(options, f"{report.markdown()}- time: {seconds}")
    if captioned.reasons:
        print_error(PatchcaptionError(_bad_images(captioned)))
        return EXIT_FAILED
    return 0


def _evaluation(options: argparse.Namespace) -> Evaluation:
    kind = options.kind or recognize_kind(options.annotations)
    return Evaluation(
        bundle_dir=options.bundle,
        kind=kind,
        truth=tuple(options.annotations),
        folders=tuple(options.images),
        form=_region_form(options, kind),
        fit=options.fit,
        limit=options.limit,
        scorer=_scorer(options),
    )


def _scorer(options: argparse.Namespace) -> ImageTextScorer | None:
    """Return what scores captions by the images, if its weights are given."""
    models: dict[str, ImageTextModel] = {}
    for name in ("clip", "pac"):
        if weights := getattr(options, name):
            models[name] = load_image_text_model(weights, f"--{name}", options.device)
            for text in models[name].notes:
                print_note(text)
    return ImageTextScorer(models.get("clip"), models.get("pac")) if models else None


def _region_form(options: argparse.Namespace, kind: str) -> RegionForm:
    """Return the form of regions, with the paper's settings where none are given.

    Raises:
        PatchcaptionError: a pool that regions of the kind do not have, or a variance without a Gaussian.
    """
    pools, is_published = POOLS[kind], options.form == "published"
    if options.pool and options.pool not in pools:
        raise PatchcaptionError(f"--pool: for --kind {kind} expected {' or '.join(pools)}, got {options.pool}")
    pool = options.pool or (PUBLISHED_POOLS[kind] if is_published else pools[0])
    if options.variance is not None and pool != "gaussian":
        raise PatchcaptionError(f"--variance: it is of --pool gaussian, got --pool {pool}")
    variance = options.variance
    if variance is None and pool == "gaussian" and is_published:
        variance = PUBLISHED_VARIANCE
    return RegionForm(options.form, options.box_format, pool, variance)


def _bad_images(captioned: CaptionedImages) -> str:
    reasons = [f"{image}: {reason}" for image, reason in captioned.reasons.items()]
    more = f"; and {len(reasons) - _MAX_NAMED} more" if len(reasons) > _MAX_NAMED else ""
    return (
        f"{len(reasons)} of {len(captioned.ids)} images have no captions, and their regions score 0: "
        f"{'; '.join(reasons[:_MAX_NAMED])}{more}. The same command tries these again"
    )


def _show(options: argparse.Namespace, text: str) -> None:
    """Print a result on stdout, or on stderr if an output goes there."""
    outputs = (options.json, options.markdown)
    if any(output is not None and output.is_stdout for output in outputs):
        print(text, file=sys.stderr)
    else:
        show(text)


def _write(output: Output, pieces: Iterable[str]) -> None:
    """Write a file whole or not at all, without all of it in memory; anything else as it is.

    Raises:
        PatchcaptionError: it cannot be written.
    """
    if not output.is_file:
        with output.growing(print_note) as file, output.errors():
            for piece in pieces:
                write_whole(file, _encoded(piece))
        return
    with output.errors(), write_atomically(Path(str(output))) as part, part.open("wb") as file:
        for piece in pieces:
            file.write(_encoded(piece))


def _encoded(text: str) -> bytes:
    """Return text in UTF-8; what a file's name has that is none stands as the escape that it is in JSON."""
    return text.encode("utf-8", "backslashreplace")


if __name__ == "__main__":
    sys.exit(main())
