"""`patchcaption doctor|tune`: what this machine has, and which backend is fastest on it."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from functools import partial

from runtime.backends import PRECISIONS
from runtime.backends.selection import measurements_file, save_measurement
from runtime.cli import exits
from runtime.cli.bundle_arguments import add_bundle_argument, add_bundle_flag
from runtime.doctor import examine
from runtime.doctor.autotune import BATCH_SIZES, measure, open_all
from runtime.hub import open_bundle
from runtime.system.standard_streams import show


def add_tune(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `tune`."""
    parser.set_defaults(run=run_tune)
    add_bundle_argument(parser)
    parser.add_argument("--precision", choices=PRECISIONS, default="fp32")


def add_doctor(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `doctor`."""
    parser.set_defaults(run=run_doctor)
    add_bundle_flag(parser, "also run this bundle on every backend")
    parser.add_argument("--json", action="store_true", help="one JSON list, for a bug report")


def run_tune(options: argparse.Namespace) -> int:
    """Time the bundle on every backend that is here, and remember the fastest."""
    bundle = open_bundle(options.bundle)
    backends, refused = open_all(bundle, options.precision)
    for reason in refused.values():
        print(f"left out: {reason}", file=sys.stderr)
    timings = measure(bundle, backends)
    show(f"{'ms':<45}{'backbone':>10}" + "".join(f"{f'{rows} at once':>14}" for rows in BATCH_SIZES))
    for timing in timings.values():
        decoding = "".join(f"{timing.decoding[rows]:>14.1f}" for rows in BATCH_SIZES)
        show(f"{timing.name:<45}{timing.backbone:>10.1f}{decoding}")
    fastest = save_measurement(
        bundle, options.precision, None, {name: timing.total for name, timing in timings.items()}
    )
    show(f"auto is {fastest} for {options.bundle} in {options.precision} from now on ({measurements_file()})")
    return exits.DONE


def run_doctor(options: argparse.Namespace) -> int:
    """Print the findings about this machine, its backends and a bundle; fail if one of them does."""
    findings = []
    for finding in examine(options.bundle):
        findings.append(finding)
        if not options.json:
            show(finding, partial(print, flush=True))
    if options.json:
        show(json.dumps([asdict(finding) for finding in findings], indent=2))
    return exits.UNUSABLE if any(finding.state == "fail" for finding in findings) else exits.DONE
