"""Time a bundle, stage by stage: `python benchmarks/latency.py engines/demo --regions 1 16 64`.

Beside each stage stands its share of the machine's best rates, measured in the same run. With `--compare eager` the
published algorithm is timed on the same weights and the same image, in turns:

    python benchmarks/latency.py BUNDLE --compare eager --json out/now.json --plot out/now.png
    python benchmarks/latency.py BUNDLE --against out/before.json
"""

from __future__ import annotations

import argparse
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import datetime, timezone
from functools import partial
from itertools import chain
from pathlib import Path

if not __package__:  # run by its path: the packages of this clone, whatever is installed
    sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.timing import stage_rows, tables
from benchmarks.timing.machine_limits import describe_machine, measure_limits
from benchmarks.timing.plot import check_plotting, plot
from benchmarks.timing.report import BundleFacts, Comparison, Report, Settings
from benchmarks.timing.stages import PipelineStages, caption_lengths, sample_boxes, write_sample
from export.command_line import bundle_folder, run_command
from runtime import Captioner, Fit, PatchcaptionError
from runtime.backends import BACKENDS, PRECISIONS

_TABLE_WIDTH = 160


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    parser = argparse.ArgumentParser(description="Time a bundle, stage by stage.")
    add_arguments(parser)
    return run_command(partial(_run, parser.parse_args(arguments)))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the bundle, what of it is timed and how, where the numbers go, and what they are compared with."""
    parser.add_argument(
        "bundle", type=bundle_folder, nargs="?", default=Path("engines/demo"), help="default: %(default)s"
    )
    parser.add_argument(
        "--regions", type=int, nargs="+", default=[1, 16, 64], help="how many at once (default: 1 16 64)"
    )
    parser.add_argument(
        "--images", type=int, default=1, help="also time the backbone on so many at once (default: %(default)s)"
    )
    parser.add_argument("--video", action="store_true", help="time a stream of frames instead (extra video)")
    parser.add_argument("--runs", type=int, default=20, help="timed runs of each (default: %(default)s)")
    parser.add_argument("--image", type=Path, metavar="FILE", help="default: a JPEG of 640 x 480 made for it")
    parser.add_argument("--backend", choices=BACKENDS, default="auto", help="default: %(default)s")
    parser.add_argument("--precision", choices=PRECISIONS, default="fp32", help="default: %(default)s")
    parser.add_argument("--threads", type=int, help="CPU threads, of the engines and of torch (default: their choice)")
    parser.add_argument("--fit", choices=("stretch", "crop"), help="default: crop with --compare, else stretch")
    parser.add_argument("--json", type=Path, metavar="OUT", help="also write every number to this file")
    parser.add_argument("--plot", type=Path, metavar="OUT.png", help="also draw the stages and the machine's limit")
    parser.add_argument("--against", type=Path, metavar="OLD.json", help="show ratios to a run that --json wrote")
    comparison = parser.add_argument_group("comparison")
    comparison.add_argument("--compare", choices=("eager",), help="time the published algorithm in torch beside it")
    comparison.add_argument("--compare-runs", type=int, default=3, help="timed runs of each (default: %(default)s)")
    comparison.add_argument(
        "--checkpoint", metavar="NAME", help="its weights (default: what the bundle was built from)"
    )
    comparison.add_argument("--checkpoint-dir", type=Path, metavar="FOLDER", help="where to look for checkpoint files")


def _check(options: argparse.Namespace) -> None:
    """Refuse, before anything is measured, what could not be shown or written afterwards."""
    for name in ("images", "runs", "compare_runs", "threads"):
        count = getattr(options, name)
        if count is not None and count < 1:
            raise PatchcaptionError(f"--{name.replace('_', '-')}: expected at least 1, got {count}")
    if min(options.regions) < 1:
        raise PatchcaptionError(f"--regions: expected at least 1, got {min(options.regions)}")
    if options.compare and options.fit == "stretch":
        raise PatchcaptionError("--fit: the published algorithm takes the centre crop: with --compare expected crop")
    if options.video and (options.compare or options.json or options.plot or options.against):
        raise PatchcaptionError("--video: it takes none of --compare, --json, --plot and --against")
    if (options.checkpoint or options.checkpoint_dir) and not options.compare:
        raise PatchcaptionError("--checkpoint: it is of --compare eager, which was not asked for")
    for path in (options.json, options.plot):
        if path and not path.parent.is_dir():
            raise PatchcaptionError(f"{path}: the folder {path.parent} does not exist")
    if options.plot:
        check_plotting()


def _run(options: argparse.Namespace) -> None:
    _check(options)
    old = Report.read(options.against) if options.against else None
    if old is not None:
        BundleFacts.of(options.bundle).check_same_work(old.bundle, options.against)
    if options.threads:
        torch.set_num_threads(options.threads)
    with ExitStack() as held:
        file = options.image or _sample_file(held)
        start = time.perf_counter()
        captioner = held.enter_context(_load(options))
        load_ms = 1000 * (time.perf_counter() - start)
        if options.video:
            _show(_time_stream(options, captioner, held), [])
            return
        report = _time_stages(options, PipelineStages(captioner), file, load_ms)
    if old is not None:
        _show(tables.against_table(old, report), tables.against_notes(old, report))
    if options.plot:
        plot(report, options.plot)


def _time_stages(options: argparse.Namespace, stages: PipelineStages, file: Path, load_ms: float) -> Report:
    """Measure, show and write every row; with --compare the ratios too."""
    report = _measure(options, stages, file, load_ms)
    _show(tables.stage_table(report), tables.stage_notes(report))
    _write(options, report)  # before the comparison too: should it fail, these numbers are kept
    if options.compare:
        report = report.model_copy(update={"comparison": _compare(options, stages, file, report.settings)})
        _show(tables.comparison_table(report), tables.comparison_notes(report))
        _write(options, report)
    return report


def _time_stream(options: argparse.Namespace, captioner: Captioner, held: ExitStack) -> Table:
    from benchmarks.timing.stream_throughput import stream_table, write_clip  # PyAV is an extra

    clip = Path(held.enter_context(tempfile.TemporaryDirectory())) / "clip.mp4"
    write_clip(clip)
    with _show_status() as report_progress:
        return stream_table(captioner, clip, sorted(set(options.regions)), options.compare_runs, report_progress)


def _sample_file(held: ExitStack) -> Path:
    file = Path(held.enter_context(tempfile.TemporaryDirectory())) / "sample.jpg"
    write_sample(file)
    return file


def _load(options: argparse.Namespace) -> Captioner:
    fit, precision, threads = _fit(options), options.precision, options.threads
    return Captioner.load(options.bundle, options.backend, fit, precision=precision, threads=threads)


def _fit(options: argparse.Namespace) -> Fit:
    return Fit(options.fit or (Fit.CROP if options.compare else Fit.STRETCH))


def _measure(options: argparse.Namespace, stages: PipelineStages, file: Path, load_ms: float) -> Report:
    machine, made_at = describe_machine(), datetime.now(timezone.utc).isoformat(timespec="seconds")
    facts = BundleFacts.of(options.bundle)
    settings = _settings(options, stages, caption_lengths(facts.decoder.max_new_tokens))
    # Refuses what does not fit, before minutes of work.
    sample_boxes(facts.backbone.tokens, facts.backbone.patch_size, max(settings.regions))
    samples: dict[int, stage_rows.Samples] = {}
    with _show_status() as report_progress:
        for count in settings.regions:
            report_progress(f"{count} regions, {settings.runs} runs")
            samples[count] = stage_rows.sample_stages(stages, file, count, settings)
        peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        report_progress("what the machine can do")
        limits = measure_limits(stages.device)
    rows = (stage_rows.report_rows(samples[count], facts, count, settings, limits) for count in settings.regions)
    return Report(
        made_at=made_at,
        bundle=facts,
        settings=settings,
        machine=machine,
        limits=limits,
        load_ms=load_ms,
        peak_mib=peak_mib,
        rows=tuple(chain.from_iterable(rows)),
    )


def _settings(options: argparse.Namespace, stages: PipelineStages, lengths: tuple[int, ...]) -> Settings:
    graph_precision = stages.captioner.manifest.engines["backbone"].precision
    return Settings(
        regions=tuple(sorted(set(options.regions))),
        tokens=lengths,
        images=options.images,
        runs=options.runs,
        warm_up=stage_rows.WARM_UP,
        backend=stages.captioner.backend.name,
        precision=graph_precision if options.precision == "fp32" else options.precision,
        threads=options.threads,
        fit=_fit(options).value,
        image="a JPEG of 640 x 480 made for it" if options.image is None else str(options.image),
    )


def _compare(options: argparse.Namespace, stages: PipelineStages, file: Path, settings: Settings) -> Comparison:
    # Here, so that export/ and its readers are not in the peak memory above.
    from benchmarks.timing.eager_comparison import PublishedSystem, compare

    with _show_status() as report_progress:
        report_progress("reading the checkpoint")
        manifest, device = stages.captioner.manifest, stages.device
        published = PublishedSystem.read(manifest, options.checkpoint, options.checkpoint_dir, device)
        regions, tokens, runs = settings.regions, settings.tokens, options.compare_runs
        return compare(stages, published, file, regions, tokens, runs, report_progress)


@contextmanager
def _show_status() -> Iterator[Callable[[str], None]]:
    """Yield a function that shows on the terminal what is being done; nothing may be printed meanwhile."""
    with Console(stderr=True).status("") as status:
        yield status.update


def _show(table: Table, notes: Sequence[str]) -> None:
    console = Console(width=_TABLE_WIDTH)
    console.print(table)
    for note in notes:
        console.print(f"- {note}", markup=False, highlight=False, soft_wrap=True)
    console.print()


def _write(options: argparse.Namespace, report: Report) -> None:
    if options.json:
        report.write(options.json)


if __name__ == "__main__":
    sys.exit(main())
