"""Build a plan of each graph of a bundle for RTX cards, and show what it takes: `python benchmarks/plans.py BUNDLE`.

NVIDIA's builder (TensorRT for RTX) needs no GPU. Times and peaks of memory are this machine's; the sizes are those that
the builder reports.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from resource import RUSAGE_SELF, getrusage

if not __package__:  # run by its path: the packages of this clone, whatever is installed
    sys.path.insert(0, str(Path(__file__).parents[1]))

from rich import box
from rich.console import Console
from rich.table import Table

from export.command_line import bundle_folder, run_command
from export.plans.builder import PlanOptions
from export.plans.bundle_plans import open_target
from export.plans.profiles import profiles_of
from export.plans.report import PlanReport, build_report
from runtime.backends.tensorrt.build import Profile
from runtime.bundle import Bundle

_HEADINGS = ("graph", "profiles", "s", "peak GiB", "plan MB", "weights MB", "activations MB", "scratch MB")
_COUNTS = ("kernels", "fused attentions", "conversions")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    parser = argparse.ArgumentParser(description="Build a bundle's plans for RTX cards and show what they take.")
    parser.add_argument(
        "bundles", type=bundle_folder, nargs="+", metavar="BUNDLE", help="built with --backend tensorrt-rtx"
    )
    return run_command(partial(_run, parser.parse_args(arguments)))


def _run(options: argparse.Namespace) -> None:
    for folder in options.bundles:
        bundle = Bundle(folder)
        backbone, precision = bundle.manifest.backbone, bundle.manifest.engines["backbone"].precision
        target = open_target("tensorrt-rtx", precision, PlanOptions())
        title = f"{backbone.name}, {backbone.preprocessing.image_size} px, {precision}, for {target.name}"
        table = Table(title=title, box=box.MARKDOWN)
        for heading in (*_HEADINGS, *_COUNTS):
            table.add_column(heading, justify="left" if heading == "graph" else "right")
        for name, profiles in profiles_of(bundle.manifest).items():
            graph = bundle.path(bundle.manifest.engines[name].file)
            table.add_row(name, *_measure(graph, profiles, target.compute_capabilities))
        Console(width=150).print(table)


def _measure(graph: Path, profiles: Sequence[Profile], compute_capabilities: tuple[str, ...]) -> list[str]:
    """Build in a process of its own, whose memory is that of the build alone; return the cells of a row."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        report, seconds, peak_bytes = process.submit(_build, graph, profiles, compute_capabilities).result()
    activations = " / ".join(f"{size / 1e6:.0f}" for size in report.activation_bytes)
    sizes = (report.plan_bytes, report.weights_bytes)
    counts = (len(report.layers), report.fused_attentions, len(report.conversions))
    return [
        str(len(profiles)),
        f"{seconds:.1f}",
        f"{peak_bytes / 2**30:.1f}",
        *(f"{size / 1e6:.0f}" for size in sizes),
        activations,
        f"{report.scratch_bytes / 1e6:.0f}",
        *map(str, counts),
    ]


def _build(
    graph: Path, profiles: Sequence[Profile], compute_capabilities: tuple[str, ...]
) -> tuple[PlanReport, float, int]:
    start = time.perf_counter()
    report = build_report(graph, profiles, compute_capabilities)
    return report, time.perf_counter() - start, getrusage(RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    sys.exit(main())
