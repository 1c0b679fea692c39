"""Score a bundle's captions: `python benchmarks/quality.py engines/demo`.

Without more arguments on held-out demo scenes, whose right captions are known (`scoring.demo_scenes`). With images and
a file of ground truth as papers do (`scoring.ground_truth`, `scoring.metrics`):

    python benchmarks/quality.py BUNDLE --images coco/val2014 --captions captions_val2014.json
    python benchmarks/quality.py BUNDLE --images FOLDER --sets coco_entities_test.json --form published
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

if not __package__:  # run by its path: the packages of this clone, whatever is installed
    sys.path.insert(0, str(Path(__file__).parents[1]))

from rich.console import Console
from rich.table import Table

from benchmarks.scoring import evaluation
from benchmarks.scoring.demo_scenes import score_scenes
from benchmarks.scoring.evaluation import Evaluation
from benchmarks.scoring.ground_truth import READERS
from benchmarks.scoring.metrics import CaptionMetrics
from benchmarks.scoring.region_forms import POOLS, RegionForm
from export.command_line import run_command
from export.demo.scenes import HELD_OUT_SEED
from runtime import Captioner, PatchcaptionError
from runtime.system.outputs import Output


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    parser = argparse.ArgumentParser(description="Score a bundle's captions, on demo scenes or against ground truth.")
    add_arguments(parser)
    return run_command(partial(_run, parser.parse_args(arguments)))


def _run(options: argparse.Namespace) -> None:
    kind = _ground_truth_kind(options)
    Console().print(_score_scenes(options) if kind is None else _score_ground_truth(options, kind))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the bundle, the ground truth and the regions that are made of it, and the metrics."""
    parser.add_argument("bundle", type=Path, nargs="?", default=Path("engines/demo"), help="default: %(default)s")
    parser.add_argument("--json", type=Path, metavar="OUT", help="also write the scores, and captions, to this file")
    parser.add_argument("--scenes", type=int, help="how many held-out demo scenes, without --images (default: 300)")
    truth = parser.add_argument_group("ground truth")
    truth.add_argument(
        "--images",
        type=Path,
        action="append",
        metavar="FOLDER",
        help="where the images lie; may be given several times",
    )
    kind = truth.add_mutually_exclusive_group()
    kind.add_argument("--captions", type=Path, metavar="FILE", help="captions of whole images: COCO, or by image id")
    kind.add_argument("--dense", type=Path, metavar="FILE", help="boxes, each captioned by itself")
    kind.add_argument("--sets", type=Path, metavar="FILE", help="boxes, all those of a caption together")
    kind.add_argument("--traces", type=Path, metavar="FILE", help="mouse traces")
    truth.add_argument("--box-format", choices=("xyxy", "xywh"), default="xyxy", help="default: xyxy")
    truth.add_argument("--limit", type=int, metavar="N", help="the first N images of the file")
    truth.add_argument(
        "--form",
        choices=("exact", "published"),
        default="exact",
        help="regions as covered, or by the published rounding",
    )
    truth.add_argument("--fit", choices=("stretch", "crop"), help="default: crop for --form published, else stretch")
    truth.add_argument("--pool", help="how the patches of a region count: mean, gaussian, attention, count, cls")
    truth.add_argument("--variance", type=float, help="of --pool gaussian")
    truth.add_argument("--spice", action="store_true", help="SPICE too; it downloads CoreNLP the first time")


def _ground_truth_kind(options: argparse.Namespace) -> str | None:
    """Return the kind of ground truth that is given, None for demo scenes.

    Raises:
        PatchcaptionError: options do not go together.
    """
    kind = next((name for name in READERS if getattr(options, name)), None)
    if kind and not options.images:
        raise PatchcaptionError(f"expected --images with --{kind}")
    if options.images and not kind:
        raise PatchcaptionError("expected --captions, --dense, --sets or --traces with --images")
    for name in ("limit", "scenes"):
        count = getattr(options, name)
        if count is not None and count < 1:
            raise PatchcaptionError(f"--{name}: expected at least 1, got {count}")
    if kind and options.pool and options.pool not in POOLS[kind]:
        raise PatchcaptionError(f"--pool: with --{kind} expected {' or '.join(POOLS[kind])}, got {options.pool}")
    if options.variance is not None and options.pool != "gaussian":
        raise PatchcaptionError("--variance: it is of --pool gaussian, which was not asked for")
    if options.json and not options.json.parent.is_dir():
        raise PatchcaptionError(f"{options.json}: the folder {options.json.parent} does not exist")
    return kind


def _score_scenes(options: argparse.Namespace) -> Table:
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
        record = {"scenes": count, "first_seed": HELD_OUT_SEED}
        _write(options.json, record | {"scores": {kind: asdict(score) for kind, score in scores.items()}})
    return table


def _score_ground_truth(options: argparse.Namespace, kind: str) -> Table:
    metrics = CaptionMetrics(options.spice)
    metrics.check()
    chosen = _evaluation(options, kind)
    predictions = evaluation.run(chosen)
    if options.json:  # before the metrics too: should they fail, the captions are kept
        _write(options.json, evaluation.to_record(chosen, predictions, None))
    start = time.perf_counter()
    candidates = {prediction.item: prediction.caption for prediction in predictions.captions}
    references = {prediction.item: prediction.references for prediction in predictions.captions}
    scores = {name: one.value for name, one in metrics.score(candidates, references).items()}
    if options.json:
        _write(options.json, evaluation.to_record(chosen, predictions, scores))
    return evaluation.score_table(chosen, predictions, scores, metrics_seconds=time.perf_counter() - start)


def _evaluation(options: argparse.Namespace, kind: str) -> Evaluation:
    return Evaluation(
        bundle_dir=options.bundle,
        kind=kind,
        truth=getattr(options, kind),
        folders=tuple(options.images),
        form=RegionForm(options.form, options.box_format, options.pool, options.variance),
        fit=options.fit or ("crop" if options.form == "published" else "stretch"),
        limit=options.limit,
    )


def _write(path: Path, record: Mapping[str, Any]) -> None:
    Output(path).write(json.dumps(record, indent=2, ensure_ascii=False).encode() + b"\n")


if __name__ == "__main__":
    sys.exit(main())
