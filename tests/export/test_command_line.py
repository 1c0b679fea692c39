"""What building commands show of their progress."""

from __future__ import annotations

import io

from rich.console import Console
from rich.text import Text

from export.command_line import shown


def test_a_build_shows_its_steps_and_what_tensorrt_does_within_them() -> None:
    out = io.StringIO()
    with shown(Console(file=out, force_terminal=True, width=80), 11) as progress:
        progress.step("backbone.onnx to a TensorRT plan")
        progress.phase("Building", 3, 10)
        progress.phase("Tactics", 1, 2)
        progress.note("a [word]")
        progress.step("decoder.onnx to a TensorRT plan")
    printed = Text.from_ansi(out.getvalue()).plain
    assert "0/11" in printed
    assert "Building" in printed
    assert "note: a [word]" in printed
