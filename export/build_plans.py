"""Adds TensorRT plans to a bundle that was built elsewhere: `python export/build_plans.py engines/demo`.

For devices that TensorRT is on and torch's exporter is not, or is slow: a bundle is exported on any machine and copied,
and its plans are built where they will run.
"""

from __future__ import annotations

import argparse
import shutil
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from export.command_line import add_plan_options, plan_options, say_error, shown
from export.plans.builder import PlanOptions
from export.plans.bundle_plans import BuildProgress, build_plans, open_for
from runtime.bundle import Bundle, Manifest, new_bundle, record_files, write_manifest
from runtime.errors import BackendError, PatchcaptionError


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(prog="build_plans.py", description="Add TensorRT plans to a bundle.")
    parser.add_argument("bundle", type=Path, help="graphs in fp32, fp16, bf16, or TensorRT's int8 or fp8")
    parser.add_argument("--out", type=Path, help="where the bundle with plans is put (default: in its place)")
    add_plan_options(parser)
    options = parser.parse_args(arguments)
    console, out = Console(stderr=True), options.out or options.bundle
    try:
        bundle = Bundle(options.bundle)
        with shown(console, _steps(bundle.manifest)) as progress:
            add_plans(bundle, out, plan_options(options), progress)
    except PatchcaptionError as error:
        say_error(console, error)
        return 1
    except KeyboardInterrupt:
        console.print(f"interrupted: {out} is as it was")
        return 130
    print(f"{out}: {len(Bundle(out, verify=False).manifest.plans)} plans")
    return 0


def add_plans(bundle: Bundle, out: Path, options: PlanOptions, progress: BuildProgress) -> None:
    """The bundle with plans of its graphs at ``out``; whatever was there stays until it is complete.

    Raises:
        BackendError: TensorRT or a GPU is not here, or TensorRT refuses a graph.
        BundleError: ``out`` cannot be written.
    """
    trt = open_for(bundle.manifest.engines["backbone"].precision)
    if bundle.manifest.engines["backbone"].precision == "int8" and bundle.manifest.backend == "cpu":
        raise BackendError(f"{bundle.folder}: its int8 is for CPUs; build it anew in fp32, fp16 or bf16")
    old = {plan.file for plan in bundle.manifest.plans}
    with new_bundle(out) as folder:
        for name in bundle.manifest.files:
            if name not in old:
                shutil.copyfile(bundle.path(name), folder / name)  # onnx refuses data that has a second hard link
        manifest = bundle.manifest.model_copy(update={"backend": "tensorrt", "plans": ()})
        plans = build_plans(trt, manifest, folder, bundle, options, progress)
        progress.step("manifest")
        complete = dict(manifest) | {"plans": plans, "files": record_files(folder)}
        write_manifest(folder, Manifest.model_validate(complete))


def _steps(manifest: Manifest) -> int:
    return 1 + len(manifest.engines)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that a build that is stopped tidies up
    sys.exit(main())
