"""Add TensorRT plans to a bundle that was built elsewhere: `patchcaption build-plans engines/demo`.

For devices that TensorRT is on and torch's exporter is not, or is slow: a bundle is exported on any machine and copied,
and its plans are built where they will run.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import get_args

if not __package__:  # run by its path: the packages of this clone, whatever is installed
    sys.path.insert(0, str(Path(__file__).parents[1]))

from rich.console import Console

from export.command_line import add_plan_options, from_namespace, run_command, show_progress
from export.plans.builder import PlanOptions
from export.plans.bundle_plans import BuildReporter, build_plans, open_target
from runtime.bundle import Bundle, Manifest, PlanProduct, new_bundle, record_files, write_manifest
from runtime.errors import BackendError
from runtime.hub import open_bundle
from runtime.hub.names import BUNDLE_FORMS, hub_name
from runtime.system.standard_streams import show


def main(arguments: Sequence[str] | None = None, prog: str = "build_plans.py") -> int:
    """Run the command; return its exit code."""
    parser = argparse.ArgumentParser(prog=prog, description="Add TensorRT plans to a bundle.")
    parser.add_argument(
        "bundle",
        help=f"{BUNDLE_FORMS}; its graphs in fp32, fp16, bf16, or TensorRT's int8 or fp8",
    )
    parser.add_argument(
        "--backend",
        choices=get_args(PlanProduct),
        help="what executes the plans (default: what the bundle was built for, or tensorrt)",
    )
    parser.add_argument("--out", type=Path, help="where the bundle with plans is put (default: in its place)")
    add_plan_options(parser)
    options = parser.parse_args(arguments)
    if options.out is None and hub_name(options.bundle) is not None:
        parser.error("--out is needed for a bundle of the hub: what is in the cache stays as it was published")
    out = options.out or Path(options.bundle)
    body = partial(_run, options.bundle, out, options.backend, from_namespace(PlanOptions, options))
    return run_command(body, interrupted=f"interrupted: {out} is as it was")


def _run(bundle_name: str, out: Path, backend: PlanProduct | None, options: PlanOptions) -> None:
    bundle = open_bundle(bundle_name)
    if backend is None:
        backend = "tensorrt-rtx" if bundle.manifest.backend == "tensorrt-rtx" else "tensorrt"
    with show_progress(Console(stderr=True), _step_count(bundle.manifest)) as progress:
        add_plans(bundle, out, backend, options, progress)
    show(f"{out}: {len(Bundle(out, verify=False).manifest.plans)} plans")


def add_plans(bundle: Bundle, out: Path, backend: PlanProduct, options: PlanOptions, progress: BuildReporter) -> None:
    """Write the bundle with plans of its graphs to ``out``; whatever was there stays until it is complete.

    Raises:
        BackendError: TensorRT or a GPU is missing, or TensorRT refuses a graph.
        BundleError: ``out`` cannot be written.
    """
    precision = bundle.manifest.engines["backbone"].precision
    target = open_target(backend, precision, options)
    if precision == "int8" and bundle.manifest.backend == "cpu":
        raise BackendError(f"{bundle.folder}: its int8 is for CPUs; build it again in fp32, fp16 or bf16")
    old_plans = {plan.file for plan in bundle.manifest.plans}
    with new_bundle(out) as folder:
        for name in bundle.manifest.files:
            if name not in old_plans:
                shutil.copyfile(bundle.path(name), folder / name)  # onnx refuses data that has a second hard link
        manifest = bundle.manifest.model_copy(update={"backend": backend, "plans": ()})
        plans = build_plans(target, manifest, folder, bundle, options, progress)
        progress.step("manifest")
        complete = dict(manifest) | {"plans": plans, "files": record_files(folder)}
        write_manifest(folder, Manifest.model_validate(complete))


def _step_count(manifest: Manifest) -> int:
    """Return the steps that `add_plans` reports: a plan for each graph, and the manifest."""
    return 1 + len(manifest.engines)


if __name__ == "__main__":
    sys.exit(main())
