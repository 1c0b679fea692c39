"""Shared parts of the commands in export/ and benchmarks/: exit codes and errors, options as dataclasses, progress."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar, get_args

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from export.plans.builder import PlanOptions
from runtime.bundle import PlanHardware
from runtime.errors import BundleError, PatchcaptionError
from runtime.hub import find_bundle
from runtime.system.signals import Terminated, terminating
from runtime.system.standard_streams import finish_standard_streams, open_standard_streams, stdout_errors

OptionsT = TypeVar("OptionsT")

EXIT_FAILED = 1
EXIT_INTERRUPTED = 130
"""The code that shells give a program which Ctrl-C has ended."""


def run_command(
    body: Callable[[], int | None],
    *,
    interrupted: str = "interrupted",
    errors: tuple[type[Exception], ...] = (PatchcaptionError,),
) -> int:
    """Run the body of a command; return its exit code, 1 after one of ``errors``, and 130 after Ctrl-C.

    SIGTERM and SIGHUP end it as Ctrl-C does, so that what is not complete is removed.

    Args:
        body: returns an exit code, or None for 0.
        interrupted: printed on stderr then.
        errors: exceptions that the user can mend, which are printed on one line of stderr; others keep their traceback.
    """
    open_standard_streams()
    try:
        with terminating():
            code = body() or 0
        finish_standard_streams()
        return code
    except BrokenPipeError:  # the reader of our output has gone, as `| head` does
        finish_standard_streams()
        return 0
    except errors as error:
        print_error(error)
        return EXIT_FAILED
    except KeyboardInterrupt as stop:
        Console(stderr=True).print(interrupted, markup=False, highlight=False, soft_wrap=True)
        return stop.exit_code if isinstance(stop, Terminated) else EXIT_INTERRUPTED


def show_result(result: object) -> None:
    """Print a result on stdout.

    Raises:
        PatchcaptionError: stdout cannot be written.
    """
    with stdout_errors():
        Console().print(result)


def print_error(error: Exception) -> None:
    """Print an error on one line of stderr."""
    message = " ".join(line.strip() for line in str(error).splitlines() if line.strip())
    Console(stderr=True).print(f"error: {message}", style="red", markup=False, highlight=False, soft_wrap=True)


def print_note(text: object, console: Console | None = None) -> None:
    """Print what the user should know, and is no error, on stderr, or on a console that shows something there."""
    (console or Console(stderr=True)).print(f"note: {text}", markup=False, highlight=False, soft_wrap=True)


def bundle_folder(text: str) -> Path:
    """Parse what names a bundle, a folder or a repository of the hub, which is fetched, as a type of argparse."""
    try:
        return find_bundle(text)
    except BundleError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def positive_int(text: str) -> int:
    """Parse a whole number of at least 1, as a type of argparse."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected at least 1, got {number}")
    return number


def from_namespace(options_class: type[OptionsT], namespace: argparse.Namespace, **given: Any) -> OptionsT:
    """Return an options dataclass of the parsed arguments named as its fields are, but for the fields in ``given``."""
    names = [field.name for field in fields(options_class) if field.name not in given]  # type: ignore[arg-type]
    return options_class(**{name: getattr(namespace, name) for name in names}, **given)


def add_plan_options(parser: argparse.ArgumentParser) -> None:
    """Add an option for each field of `PlanOptions`."""
    group = parser.add_argument_group("TensorRT")
    group.add_argument("--workspace-mib", type=positive_int, help="most memory that a plan may take as workspace")
    group.add_argument(
        "--version-compatible", action="store_true", help="let newer versions of the same major load them"
    )
    group.add_argument(
        "--hardware",
        choices=get_args(PlanHardware),
        default=PlanOptions.hardware,
        help="which GPUs may load them: the same kind, the same compute capability, or all from Ampere on; more of "
        "them are slower (default: %(default)s)",
    )
    group.add_argument(
        "--compute-capability",
        dest="compute_capabilities",
        type=lambda text: tuple(text.split(",")),
        metavar="LIST",
        default=(),
        help="for tensorrt-rtx: the GPUs to build for, such as 8.9,12.0 (default: all from 8.6 on; 7.5 by itself)",
    )
    group.add_argument(
        "--dla", type=int, metavar="CORE", help="build for a DLA core of a Jetson, with the GPU beside it"
    )
    group.add_argument(
        "--optimization-level",
        type=int,
        choices=range(6),
        default=PlanOptions.optimization_level,
        help="how long to look for fast kernels (default: %(default)s)",
    )


@contextmanager
def show_progress(console: Console, steps: int) -> Iterator[BuildProgress]:
    """Show a build of so many steps on a terminal; yield what the build reports to."""
    columns = (MofNCompleteColumn(), BarColumn(20), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
        yield BuildProgress(bars, steps)


class BuildProgress:
    """The bar of a build's steps, and below it a bar for each phase of TensorRT within the current step."""

    def __init__(self, bars: Progress, steps: int) -> None:
        self._bars = bars
        self._whole, self._begun, self._steps = bars.add_task("", total=steps, completed=-1), 0, steps
        self._phases: dict[str, TaskID] = {}

    def step(self, description: str) -> None:
        """Begin the next step, which may be one more than was expected: decoders with prompts have more graphs."""
        self._begun += 1
        self._steps = max(self._steps, self._begun)
        for task in self._phases.values():
            self._bars.remove_task(task)
        self._phases.clear()
        self._bars.update(self._whole, advance=1, total=self._steps, description=description)
        self._bars.refresh()

    def phase(self, name: str, done: int, total: int) -> None:
        """Advance a phase of the step; a ``total`` of 0 is not known."""
        if name not in self._phases:
            self._phases[name] = self._bars.add_task(f"  {name}", total=total or None)
        self._bars.update(self._phases[name], completed=done)

    def note(self, text: str) -> None:
        """Print a line for the user above the bars."""
        print_note(text, self._bars.console)
