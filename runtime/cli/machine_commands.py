"""`patchcaption doctor`: what this machine has, and whether it works."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from functools import partial

from runtime.cli import exits
from runtime.cli.bundle_arguments import add_bundle_flag
from runtime.doctor import examine
from runtime.system.standard_streams import show


def add_doctor(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `doctor`."""
    parser.set_defaults(run=run_doctor)
    add_bundle_flag(parser, "also run this bundle on every backend")
    parser.add_argument("--json", action="store_true", help="one JSON list, for a bug report")


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
