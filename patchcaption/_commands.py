"""The commands that build bundles, from `export/`.

They are `patchcaption build|build-plans|build-memory-bank|parse-captions|train|triton-repository|lint|demo`.
"""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType

from patchcaption._interrupts import ending_at_once
from patchcaption._packages import claim
from runtime.cli import exits
from runtime.cli.main import main as run_runtime

_DEMO = "demo"
_ONNXRUNTIME = "pip install 'patchcaption[cpu]', or [gpu]; the two have one module and exclude each other"
_SAMPLE_IN_A_CLONE = "export/demo/sample"


@dataclass(frozen=True)
class ToolCommand:
    """A command of `export/`.

    Attributes:
        module: has the function ``main(arguments, prog)``, which returns the exit code.
        help: a line on what it does.
        extra: the optional dependencies that it needs.
    """

    module: str
    help: str
    extra: str = "export"


TOOLS: Mapping[str, ToolCommand] = {
    "build": ToolCommand("export.build_engines", "build a bundle from a checkpoint"),
    "build-plans": ToolCommand("export.build_plans", "add TensorRT plans to a bundle", extra="plans"),
    "build-memory-bank": ToolCommand("export.build_memory_bank", "build a memory bank from captions"),
    "parse-captions": ToolCommand("export.parse_captions", "parse captions into scene graphs, for MeaCap"),
    "train": ToolCommand("export.train_decoder", "train a decoder on captions alone"),
    "triton-repository": ToolCommand(
        "export.triton_repository", "make a model repository for Triton Inference Server of a bundle", extra="plans"
    ),
    "lint": ToolCommand("export.lint.__main__", "find what TensorRT will not take in ONNX graphs", extra="plans"),
    _DEMO: ToolCommand("export.build_engines", "build the demo bundle, and caption its sample image"),
}


def run_tool(name: str, arguments: Sequence[str]) -> int:
    """Run a command of `TOOLS`; return its exit code."""
    tool, prog = TOOLS[name], f"patchcaption {name}"
    try:
        with ending_at_once():
            claim("export")
            module = import_module(tool.module)
        return _run_demo(prog, arguments, module) if name == _DEMO else int(module.main(arguments, prog))
    except ModuleNotFoundError as error:  # also of what is imported where it is used
        fix = _ONNXRUNTIME if error.name == "onnxruntime" else f"pip install 'patchcaption[{tool.extra}]'"
        return exits.fail(f"{name}: {error}: {fix}", exits.UNUSABLE)


def _run_demo(prog: str, arguments: Sequence[str], build_engines: ModuleType) -> int:
    """Build the demo bundle, caption its sample, and draw the captions on it."""
    parser = argparse.ArgumentParser(prog=prog, description=f"{TOOLS[_DEMO].help.capitalize()}.")
    parser.add_argument("--out", type=Path, default=Path("engines/demo"), help="the bundle (default: %(default)s)")
    parser.add_argument("--save", type=Path, metavar="PICTURE", help="the image with its captions (default: OUT.png)")
    options = parser.parse_args(arguments)
    picture = options.save or options.out.with_name(f"{options.out.name}.png")
    build: Callable[[Sequence[str], str], int] = build_engines.main
    code = build([_DEMO, "--out", str(options.out)], prog)
    if code != exits.DONE:
        return code
    picture.parent.mkdir(parents=True, exist_ok=True)
    sample = Path(str(build_engines.__file__)).parent / "demo" / "sample"
    regions = (sample / "regions.txt").read_text(encoding="utf-8").replace(_SAMPLE_IN_A_CLONE, shlex.quote(str(sample)))
    files = [str(sample / "scene.jpg"), "--bundle", str(options.out), "--save", str(picture)]
    code = run_runtime(["caption", *files, *shlex.split(regions)])
    if code == exits.DONE:
        exits.note(f"the image with its captions: {picture}")
    return code
