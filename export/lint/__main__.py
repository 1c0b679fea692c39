"""The command `python -m export.lint`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from export.lint import lint
from export.lint.finding import LintFinding, format_version
from export.lint.parser import ParserProcess
from export.lint.support_table import Version
from runtime.bundle import ShapeRange
from runtime.errors import BackendError


def main(arguments: Sequence[str] | None = None, prog: str = "lint") -> int:
    """Run the command; return 0 without errors in the graphs, 1 with some, 2 if it could not run."""
    options = _parser(prog).parse_args(arguments)
    try:
        ranges = json.loads(options.ranges.read_text(encoding="utf-8")) if options.ranges else {}
        findings = {str(path): lint(path, options.tensorrt, options.profile, ranges) for path in options.graphs}
        readers = [f"will likely parse in TensorRT {format_version(options.tensorrt)}"]
        if options.parser:
            with ParserProcess() as parser:
                findings = {path: [*parser.findings(Path(path)), *of_graph] for path, of_graph in findings.items()}
                readers.insert(0, f"parses in {parser.name}")
    except (OSError, ValueError, BackendError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if options.json:
        flat = [{"graph": path, **asdict(finding)} for path, of_graph in findings.items() for finding in of_graph]
        print(json.dumps(flat, indent=2))
    else:
        _print_findings(findings, ", ".join(readers))
    return int(any(finding.severity == "error" for of_graph in findings.values() for finding in of_graph))


def _parser(prog: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=prog, description="Find what TensorRT will not accept in ONNX graphs.")
    parser.add_argument("graphs", type=Path, nargs="+", metavar="MODEL.onnx")
    parser.add_argument("--tensorrt", type=_version, default=(10, 3), metavar="10.3", help="default: 10.3, JetPack 6's")
    parser.add_argument(
        "--parser",
        action="store_true",
        help="ask the installed parser too and give its words first: TensorRT-RTX, which needs no GPU, or TensorRT",
    )
    parser.add_argument(
        "--profile",
        type=_profile,
        action="append",
        default=[],
        metavar="NAME=1x3:4x3:8x3,...",
        help="min, opt and max shapes of all dynamic inputs; repeat it for several profiles",
    )
    parser.add_argument("--ranges", type=Path, metavar="JSON", help="the largest absolute values measured, by tensor")
    parser.add_argument("--json", action="store_true", help="print one JSON list")
    return parser


def _print_findings(findings: Mapping[str, Sequence[LintFinding]], praise: str) -> None:
    for path, of_graph in findings.items():
        for finding in of_graph:
            print(f"{path}: {finding}")
        if not any(finding.severity == "error" for finding in of_graph):
            print(f"{path}: {praise}")


def _version(text: str) -> Version:
    parts = text.split(".")
    if len(parts) < 2 or not all(part.isdigit() for part in parts) or (int(parts[0]), int(parts[1])) < (10, 0):
        raise argparse.ArgumentTypeError(f"expected a version from 10.0 such as 10.3, got {text!r}")
    return int(parts[0]), int(parts[1])


def _profile(text: str) -> dict[str, ShapeRange]:
    try:
        pairs = [part.split("=") for part in text.split(",")]
        shapes = {name: [tuple(map(int, shape.split("x"))) for shape in given.split(":")] for name, given in pairs}
        return {name: ShapeRange(min=low, opt=typical, max=high) for name, (low, typical, high) in shapes.items()}
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"expected NAME=1x3:4x3:8x3,..., got {text!r}: {error}") from None


if __name__ == "__main__":
    sys.exit(main())
