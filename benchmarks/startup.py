"""Time what comes before the first caption: imports, the command, loading a bundle; and the first caption itself.

    python benchmarks/startup.py engines/demo

Each is timed in processes of its own, in turns with ``python -c pass`` and ``import torch``.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

if not __package__:  # run by its path: the packages of this clone, whatever is installed
    sys.path.insert(0, str(Path(__file__).parents[1]))

from rich import box
from rich.console import Console
from rich.table import Table

from export.command_line import bundle_folder, run_command
from runtime.backends import BACKENDS
from runtime.errors import PatchcaptionError

_COMMANDS: Mapping[str, Sequence[str]] = {
    "python -c pass": ("-c", "pass"),
    "import torch": ("-c", "import torch"),
    "import runtime": ("-c", "import runtime"),
    "patchcaption --version": ("-m", "patchcaption", "--version"),
    "patchcaption --help": ("-m", "patchcaption", "--help"),
}
_LATER = 20
"""Captions after the first."""
_CHILD = f"""
import json, sys, time
from runtime import Captioner, WholeImage
import numpy as np
def timed(function):
    start = time.perf_counter()
    result = function()
    return time.perf_counter() - start, result
image = np.random.default_rng(0).integers(0, 256, (480, 640, 3), dtype=np.uint8)
load_s, captioner = timed(lambda: Captioner.load(sys.argv[1], sys.argv[2]))
captions = [timed(lambda: captioner.caption(image, [WholeImage()]))[0] for _ in range(1 + {_LATER})]
print(json.dumps({{"load": load_s, "first": captions[0], "later": sorted(captions[1:])[{_LATER} // 2]}}))
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    parser = argparse.ArgumentParser(description="Time imports, the command, loading, and the first caption.")
    parser.add_argument(
        "bundle", type=bundle_folder, nargs="?", default=Path("engines/demo"), help="default: %(default)s"
    )
    parser.add_argument("--backend", choices=BACKENDS, default="auto", help="default: %(default)s")
    parser.add_argument("--turns", type=int, default=7, help="processes for each (default: %(default)s)")
    return run_command(partial(_run, parser.parse_args(arguments)))


def _run(options: argparse.Namespace) -> None:
    if options.turns < 1:
        raise PatchcaptionError("--turns: expected at least 1")
    turns = [_turn(options) for _ in range(1 + options.turns)][1:]  # the first reads the files from the disk
    medians = {name: statistics.median(turn[name] for turn in turns) for name in turns[0]}
    Console(width=120).print(_table(medians))


def _turn(options: argparse.Namespace) -> dict[str, float]:
    """Return seconds: of each command, and of what a program does that loads the bundle."""
    times = {name: _seconds(command) for name, command in _COMMANDS.items()}
    done = _python("-c", _CHILD, str(options.bundle), options.backend)
    if done.returncode:
        raise PatchcaptionError((done.stderr.splitlines() or ["the program that loads the bundle failed"])[-1])
    return times | json.loads(done.stdout)


def _seconds(command: Sequence[str]) -> float:
    start = time.perf_counter()
    _python(*command).check_returncode()
    return time.perf_counter() - start


def _python(*arguments: str) -> subprocess.CompletedProcess[str]:
    root = Path(__file__).parents[1]
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, cwd=root, check=False)


def _table(seconds: Mapping[str, float]) -> Table:
    table = Table(title="medians", box=box.MARKDOWN)
    for heading in ("", "ms", "of python -c pass", "of import torch"):
        table.add_column(heading, justify="right" if heading else "left")
    names = {"load": "Captioner.load", "first": "the first caption", "later": "a later caption"}
    for name, value in seconds.items():
        shares = [f"{value / seconds[other]:.2f}" for other in ("python -c pass", "import torch")]
        table.add_row(names.get(name, name), f"{value * 1000:,.1f}", *shares)
    table.add_row("the first / a later one", f"{seconds['first'] / seconds['later']:.2f}", "", "")
    return table


if __name__ == "__main__":
    sys.exit(main())
