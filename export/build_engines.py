"""Build a bundle from a checkpoint: `patchcaption build demo --out engines/demo`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import get_args

if not __package__:  # run by its path: the packages of this clone, whatever is installed
    sys.path.insert(0, str(Path(__file__).parents[1]))

from rich.console import Console
from rich.table import Table

from export.bundle_builder import BuildOptions, build
from export.command_line import (
    add_plan_options,
    from_namespace,
    positive_int,
    run_command,
    show_progress,
    show_result,
)
from export.plans.builder import PlanOptions
from export.readers import is_backbone, is_repository
from export.readers.hub import base_name
from runtime.backends import BACKENDS
from runtime.bundle import Bundle, BundleBackend, EnginePrecision
from runtime.bundle.dtypes import StoragePrecision


def main(arguments: Sequence[str] | None = None, prog: str = "build_engines.py") -> int:
    """Run the command; return its exit code."""
    parser = argparse.ArgumentParser(prog=prog, description="Build a bundle from a checkpoint.")
    add_arguments(parser)
    options = parser.parse_args(arguments)
    if options.out is None:
        name = options.checkpoint
        if name not in ("demo", "demo-viecap") and not is_repository(name) and not is_backbone(name):
            parser.error("--out is needed for any checkpoint but demo, demo-viecap and those of the hub")
        options.out = Path("engines") / base_name(options.checkpoint)
    return run_command(partial(_build, options), interrupted=f"interrupted: {options.out} is as it was")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the checkpoint, the place of the bundle, and an option for each field of `BuildOptions`."""
    parser.add_argument(
        "checkpoint",
        nargs="?",
        default="demo",
        help="demo (default); demo-viecap, the same with a second decoder; "
        "seeded:ARCHITECTURE[,size=518][,memory=2000][,salt=] with made-up weights, for example "
        "seeded:dinov2_vitb14_reg,size=224; the path of a Patch-ioner .yaml; or OWNER/NAME[@REVISION] on the "
        "Hugging Face hub",
    )
    parser.add_argument(
        "--out", type=Path, help="the bundle's folder (default: engines/NAME for demo, demo-viecap and the hub)"
    )
    parser.add_argument(
        "--checkpoint-dir", type=Path, metavar="FOLDER", help="where to look for checkpoint files before downloading"
    )
    parser.add_argument(
        "--backend",
        choices=get_args(BundleBackend),
        default=BuildOptions.backend,
        help="what the bundle is for, and opened with by default; tensorrt builds plans, on the GPU they are for "
        "(default: %(default)s)",
    )
    _add_precisions(parser)
    parser.add_argument(
        "--max-images",
        type=positive_int,
        default=BuildOptions.max_images,
        help="images the backbone takes at once (default: %(default)s)",
    )
    parser.add_argument(
        "--max-regions",
        type=positive_int,
        default=BuildOptions.max_regions,
        help="captions decoded at once (default: %(default)s)",
    )
    parser.add_argument(
        "--without-plans",
        action="store_true",
        help="with --backend tensorrt and tensorrt-rtx: leave the plans to patchcaption build-plans",
    )
    add_plan_options(parser)


def _add_precisions(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--precision",
        choices=get_args(EnginePrecision),
        help="what the graphs compute products in: fp16 and bf16 for GPUs; int8 for CPUs, where it is smaller and "
        "faster, and for TensorRT, which has fp8 too, both with --calibration; each changes few captions (default: "
        "fp16 for tensorrt-rtx, else fp32)",
    )
    parser.add_argument(
        "--memory-precision",
        choices=get_args(StoragePrecision),
        default=BuildOptions.memory_precision,
        help="what the memory bank is stored in; no choice changes projected vectors by 1e-3 (default: %(default)s)",
    )
    parser.add_argument(
        "--calibration",
        type=Path,
        metavar="FOLDER",
        help="images like those to be described, which show how large activations become; for fp16 and what is below",
    )


def _build(options: argparse.Namespace) -> None:
    plans = None if options.without_plans else from_namespace(PlanOptions, options)
    precision = options.precision or BACKENDS[options.backend].default_precision
    build_options = from_namespace(BuildOptions, options, plans=plans, precision=precision)
    with show_progress(Console(stderr=True), build_options.steps) as progress:
        build(options.checkpoint, options.out, progress, build_options)
    show_result(_files_table(Bundle(options.out, verify=False)))


def _files_table(bundle: Bundle) -> Table:
    manifest = bundle.manifest
    table = Table(title=f"{bundle.folder}: {manifest.build.checkpoint}, {manifest.backbone.name}")
    for heading in ("file", "MiB", "precision", "largest difference"):
        table.add_column(heading, justify="left" if heading == "file" else "right")
    engines = {record.file: record for record in manifest.engines.values()}
    for name, record in manifest.files.items():
        engine = engines.get(name)
        size = f"{record.bytes / 2**20:.2f}"
        columns = (engine.precision, f"{engine.max_error:.1e}") if engine else ("", "")
        table.add_row(name, size, *columns)
    return table


if __name__ == "__main__":
    sys.exit(main())
