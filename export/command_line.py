"""What the commands that build have in common: their TensorRT options, and how they show where they are."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from typing import get_args

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from export.plans.builder import PlanOptions
from runtime.bundle import PlanHardware


def count(text: str) -> int:
    """A whole number of at least 1, as an argument."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected at least 1, got {number}")
    return number


def add_plan_options(parser: argparse.ArgumentParser) -> None:
    """The options of `PlanOptions`."""
    group = parser.add_argument_group("TensorRT")
    group.add_argument("--workspace-mib", type=count, help="memory that plans may take for what is in between")
    group.add_argument(
        "--version-compatible", action="store_true", help="let newer versions of the same major load them"
    )
    group.add_argument(
        "--hardware",
        choices=get_args(PlanHardware),
        default="same",
        help="which GPUs may load them: the same kind, the same compute capability, or all from Ampere on; more of "
        "them are slower (default: same)",
    )
    group.add_argument(
        "--dla", type=int, metavar="CORE", help="build for a DLA core of a Jetson, with the GPU beside it"
    )
    group.add_argument(
        "--optimization-level",
        type=int,
        choices=range(6),
        default=3,
        help="how long to look for fast kernels (default: 3)",
    )


def plan_options(options: argparse.Namespace) -> PlanOptions:
    """What `add_plan_options` parsed."""
    return PlanOptions(
        workspace_mib=options.workspace_mib,
        version_compatible=options.version_compatible,
        hardware=options.hardware,
        dla=options.dla,
        optimization_level=options.optimization_level,
    )


def say_error(console: Console, error: Exception) -> None:
    """On one line."""
    console.print(f"error: {error}", style="red", markup=False, highlight=False, soft_wrap=True)


class _Shown:
    """A build's steps on a terminal, and below them what TensorRT does within one."""

    def __init__(self, bars: Progress, steps: int) -> None:
        self._bars = bars
        self._whole = bars.add_task("", total=steps, completed=-1)
        self._phases: dict[str, TaskID] = {}

    def step(self, description: str) -> None:
        for task in self._phases.values():
            self._bars.remove_task(task)
        self._phases.clear()
        self._bars.update(self._whole, advance=1, description=description)
        self._bars.refresh()

    def phase(self, name: str, done: int, total: int) -> None:
        if name not in self._phases:
            self._phases[name] = self._bars.add_task(f"  {name}", total=total or None)
        self._bars.update(self._phases[name], completed=done)

    def note(self, text: str) -> None:
        self._bars.console.print(f"note: {text}", markup=False, highlight=False, soft_wrap=True)


@contextmanager
def shown(console: Console, steps: int) -> Iterator[_Shown]:
    """What `build` may be given to show its progress."""
    columns = (MofNCompleteColumn(), BarColumn(20), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
        yield _Shown(bars, steps)
