"""How commands end, how their arguments become options, and what a build shows of its progress."""

from __future__ import annotations

import argparse
import io
import re
import sys
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import pytest
from rich.console import Console
from rich.text import Text

from export import build_engines, bundle_builder
from export.bundle_builder import BuildOptions
from export.command_line import add_plan_options, from_namespace, positive_int, run_command, show_progress
from export.plans.builder import PlanOptions
from runtime import PatchcaptionError
from runtime.backends import BACKENDS
from tests.conftest import ROOT

EXTRAS = {"tensorrt", "onnxruntime", "openvino", "av", "cuda", "polygraphy", "pycuda"}
"""Modules that this environment may lack and a user's may have."""


def fail(error: BaseException) -> None:
    raise error


@pytest.mark.parametrize(("returned", "code"), [(None, 0), (0, 0), (3, 3)])
def test_the_exit_code_is_the_commands_own(returned: int | None, code: int) -> None:
    assert run_command(lambda: returned) == code


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (PatchcaptionError("a  b: expected [red]\n  1"), "error: a  b: expected [red] 1\n"),
        (PatchcaptionError("x" * 500), f"error: {'x' * 500}\n"),
        (OSError("no disk"), "error: no disk\n"),
    ],
)
def test_an_error_that_the_user_can_mend_is_one_line(
    error: Exception, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(lambda: fail(error), errors=(PatchcaptionError, OSError)) == 1
    assert capsys.readouterr() == ("", line)


def test_other_errors_keep_their_traceback() -> None:
    with pytest.raises(OSError, match="no disk"):
        run_command(lambda: fail(OSError("no disk")))


def test_an_interrupted_command_says_what_is_left(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(lambda: fail(KeyboardInterrupt()), interrupted="interrupted: out is as it was") == 130
    assert capsys.readouterr() == ("", "interrupted: out is as it was\n")


def test_options_are_taken_by_the_names_of_their_fields() -> None:
    @dataclass(frozen=True)
    class Options:
        size: int
        name: str = "demo"

    namespace = argparse.Namespace(size=4, name="other", unrelated=True)
    assert from_namespace(Options, namespace) == Options(4, "other")
    assert from_namespace(Options, argparse.Namespace(size=4), name="given") == Options(4, "given")


def test_what_a_build_does_by_default_is_what_its_options_say() -> None:
    from export.build_engines import add_arguments

    parser = argparse.ArgumentParser()
    add_arguments(parser)
    namespace = parser.parse_args([])
    plans, precision = from_namespace(PlanOptions, namespace), BACKENDS[namespace.backend].default_precision
    assert namespace.precision is None, "the backend's default"
    assert from_namespace(BuildOptions, namespace, plans=plans, precision=precision) == BuildOptions()
    parser = argparse.ArgumentParser()
    add_plan_options(parser)
    assert from_namespace(PlanOptions, parser.parse_args([])) == PlanOptions()


def test_onnxruntime_is_missed_before_the_work(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.setattr(bundle_builder, "read_checkpoint", None)
    with pytest.raises(ModuleNotFoundError, match="onnxruntime"):
        build_engines.main(["demo", "--out", str(tmp_path / "bundle")])


def test_a_build_shows_its_steps_and_what_tensorrt_does_within_them() -> None:
    out = io.StringIO()
    with show_progress(Console(file=out, force_terminal=True, width=80), 11) as progress:
        progress.step("backbone.onnx to a TensorRT plan")
        progress.phase("Building", 3, 10)
        progress.phase("Tactics", 1, 2)
        progress.note("a [word]")
        progress.step("decoder.onnx to a TensorRT plan")
    printed = Text.from_ansi(out.getvalue()).plain
    assert "0/11" in printed
    assert "Building" in printed
    assert "note: a [word]" in printed


def test_a_build_of_more_steps_than_expected_never_shows_more_done_than_there_are() -> None:
    out = io.StringIO()
    with show_progress(Console(file=out, force_terminal=True, width=80), 2) as progress:
        for number in range(4):
            progress.step(f"graph {number}")
    shown = re.findall(r"(\d+)/(\d+)", Text.from_ansi(out.getvalue()).plain)
    assert ("3", "4") in shown
    assert all(int(done) < int(steps) for done, steps in shown)


def test_a_count_below_one_is_refused() -> None:
    assert positive_int("3") == 3
    with pytest.raises(argparse.ArgumentTypeError, match="expected at least 1, got 0"):
        positive_int("0")


@pytest.mark.parametrize("folder", ["export", "benchmarks"])
def test_no_module_beside_a_command_is_named_as_another_package(folder: str) -> None:
    """A command that is run by its path has its own folder first on the path of imports."""
    beside = {path.stem for path in (ROOT / folder).iterdir() if path.suffix == ".py" or path.is_dir()} - {"__init__"}
    others = {*sys.stdlib_module_names, *metadata.packages_distributions(), *EXTRAS}
    assert beside & others == set()
