"""Builds a bundle from a checkpoint: `python export/build_engines.py demo --out engines/demo`."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from rich.console import Console
from rich.table import Table

from export.bundle_builder import BuildOptions, build
from export.command_line import add_plan_options, count, plan_options, say_error, shown
from export.readers import is_repository
from runtime.bundle import Bundle, BundleBackend, EnginePrecision
from runtime.bundle.dtypes import StoragePrecision
from runtime.errors import PatchcaptionError


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(prog="build_engines.py", description="Build a bundle from a checkpoint.")
    parser.add_argument(
        "checkpoint",
        nargs="?",
        default="demo",
        help="demo (default); seeded:ARCHITECTURE[,size=518][,memory=2000][,salt=] with made-up weights, for example "
        "seeded:dinov2_vitb14_reg,size=224; the path of a Patch-ioner .yaml; or OWNER/NAME on the Hugging Face hub",
    )
    parser.add_argument("--out", type=Path, help="the bundle's folder (default: engines/NAME for demo and the hub)")
    parser.add_argument(
        "--checkpoint-dir", type=Path, metavar="FOLDER", help="where to look for checkpoint files before downloading"
    )
    parser.add_argument(
        "--backend",
        choices=get_args(BundleBackend),
        default="cpu",
        help="what the bundle is for, and opened with by default; tensorrt builds plans, on the GPU they are for "
        "(default: cpu)",
    )
    parser.add_argument(
        "--precision",
        choices=get_args(EnginePrecision),
        default="fp32",
        help="what the graphs compute products in: fp16 and bf16 for GPUs; int8 for CPUs, where it is smaller and "
        "faster; each changes few captions. For TensorRT fp8 and int8 too, with --calibration and --modelopt (default: "
        "fp32)",
    )
    parser.add_argument(
        "--memory-precision",
        choices=get_args(StoragePrecision),
        default="fp32",
        help="what the memory bank is stored in; no choice changes projected vectors by 1e-3 (default: fp32)",
    )
    parser.add_argument("--max-images", type=count, default=8, help="images the backbone takes at once (default: 8)")
    parser.add_argument("--max-regions", type=count, default=256, help="captions decoded at once (default: 256)")
    parser.add_argument(
        "--calibration",
        type=Path,
        metavar="FOLDER",
        help="images like those to be described, which show how large activations become; for fp16 and what is below",
    )
    parser.add_argument(
        "--modelopt",
        type=Path,
        metavar="PYTHON",
        help="the interpreter of an environment with nvidia-modelopt[onnx], for fp8 and int8 of TensorRT",
    )
    parser.add_argument(
        "--without-plans",
        action="store_true",
        help="with --backend tensorrt: leave the plans to build_plans.py, on the device that they are for",
    )
    add_plan_options(parser)
    options = parser.parse_args(arguments)
    if options.out is None:
        if options.checkpoint != "demo" and not is_repository(options.checkpoint):
            parser.error("--out is needed for any checkpoint but demo and those of the hub")
        options.out = Path("engines") / options.checkpoint.split("/")[-1]
    console = Console(stderr=True)
    try:
        how = _build_options(options)
        with shown(console, how.steps) as progress:
            build(options.checkpoint, options.out, progress, how)
    except PatchcaptionError as error:
        say_error(console, error)
        return 1
    except KeyboardInterrupt:
        console.print(f"interrupted: {options.out} is as it was")
        return 130
    Console().print(_report(Bundle(options.out, verify=False)))
    return 0


def _build_options(options: argparse.Namespace) -> BuildOptions:
    return BuildOptions(
        checkpoint_dir=options.checkpoint_dir,
        backend=options.backend,
        precision=options.precision,
        memory_precision=options.memory_precision,
        max_images=options.max_images,
        max_regions=options.max_regions,
        plans=None if options.without_plans else plan_options(options),
        calibration=options.calibration,
        modelopt=options.modelopt,
    )


def _report(bundle: Bundle) -> Table:
    manifest = bundle.manifest
    table = Table(title=f"{bundle.folder}: {manifest.build.checkpoint}, {manifest.backbone.name}")
    for heading in ("file", "MiB", "precision", "largest difference"):
        table.add_column(heading, justify="left" if heading == "file" else "right")
    engines = {record.file: record for record in manifest.engines.values()}
    for name, record in manifest.files.items():
        engine = engines.get(name)
        size = f"{record.bytes / 2**20:.2f}"
        precision, difference = (engine.precision, f"{engine.max_error:.1e}") if engine else ("", "")
        table.add_row(name, size, precision, difference)
    return table


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that a build that is stopped tidies up
    sys.exit(main())
