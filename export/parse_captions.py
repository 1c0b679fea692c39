"""Parse captions into scene graphs: `patchcaption parse-captions captions.json --out scene_graphs.jsonl`.

A decoder that takes its words from the memory's captions (MeaCap) is built from their scene graphs
(published-system.md, section 19). The same command goes on with a file that was interrupted, or that lacks captions.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

if not __package__:  # run by its path: the packages of this clone, whatever is installed
    sys.path.insert(0, str(Path(__file__).parents[1]))

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from export.caption_file import CAPTIONS_HELP, read_texts
from export.checkpoint import CheckpointError
from export.command_line import positive_int, run_command
from export.concepts.graph_file import GRAPHS_FILE
from export.concepts.graph_parser import PUBLISHED_PARSER, load_graph_parser
from export.concepts.parsing_run import write_graphs
from runtime.errors import PatchcaptionError
from runtime.system.outputs import Output, check_distinct
from runtime.system.standard_streams import show


def main(arguments: Sequence[str] | None = None, prog: str = "parse_captions.py") -> int:
    """Run the command; return its exit code."""
    parser = argparse.ArgumentParser(prog=prog, description="Parse captions into scene graphs.")
    add_arguments(parser)
    body = partial(_run, parser.parse_args(arguments))
    return run_command(
        body, interrupted="interrupted; the same command goes on from here", errors=(PatchcaptionError, OSError)
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the captions, the model that parses them, and the file of graphs."""
    parser.add_argument("captions", type=Path, help=CAPTIONS_HELP)
    parser.add_argument(
        "--out", type=Path, required=True, metavar="FILE", help=f"the graphs, JSON lines; builds look for {GRAPHS_FILE}"
    )
    parser.add_argument(
        "--parser", default=PUBLISHED_PARSER, metavar="MODEL", help="a folder or repository (default: %(default)s)"
    )
    parser.add_argument("--batch-size", type=positive_int, default=32, help="captions at once (default: %(default)s)")
    parser.add_argument("--device", default="cpu", help="where the parser runs: cpu (default), cuda")


def _run(options: argparse.Namespace) -> None:
    output = Output(options.out)
    output.check()
    if not output.is_file:
        raise CheckpointError(f"{options.out}: expected a file, which can be gone on with")
    check_distinct({"--out": output}, [options.captions, Path(options.parser)])
    captions = read_texts(options.captions)
    parser = load_graph_parser(options.parser, options.device)
    columns = (MofNCompleteColumn(), BarColumn(), TimeElapsedColumn(), TextColumn("elapsed,"), TimeRemainingColumn())
    with Progress(*columns, TextColumn("left"), console=Console(stderr=True)) as progress:
        task = progress.add_task("captions", total=len(set(captions)))
        count = write_graphs(
            captions, parser, options.out, options.batch_size, lambda done: progress.update(task, completed=done)
        )
    show(f"{options.out}: the scene graphs of {count} captions")


if __name__ == "__main__":
    sys.exit(main())
