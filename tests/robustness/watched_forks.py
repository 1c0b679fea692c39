"""Runs commands one after another, each in a fork of this process, which has imported torch. Run by watched.py.

Usage: python -m tests.robustness.watched_forks JOBS.json MODULES..., a list of `Job`, and what is imported before. A
call that is traced, and fails, marks where each begins. The last line on stdout has the exit code of each.

What libraries do to the network or to files they may do when they are first imported or used, and what mutes them may
be set just before: so nothing is loaded here that reports anything, and no variable is set.
"""

from __future__ import annotations

import json
import os
import runpy
import sys
import tempfile
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import TypedDict

BEGINS = "/watched-command-begins"
_LOADED_BY_COMMANDS = ("onnxruntime", "openvino", "tensorrt", "tensorrt_rtx", "transformers", "huggingface_hub", "ray")


class Job(TypedDict):
    """A command: a name, Python's arguments, and a folder that also has the home and the folder for temporary files."""

    name: str
    arguments: list[str]
    cwd: str


def main() -> None:
    environment = dict(os.environ)
    for module in sys.argv[2:]:
        import_module(module)
    assert dict(os.environ) == environment
    assert not set(_LOADED_BY_COMMANDS) & set(sys.modules)
    codes = {}
    for job in json.loads(Path(sys.argv[1]).read_text()):
        with suppress(FileNotFoundError):
            os.open(f"{BEGINS}/{job['name']}", os.O_RDONLY)
        child = os.fork()
        if child == 0:
            _run(job)
            return
        _, status = os.waitpid(child, 0)
        codes[job["name"]] = os.waitstatus_to_exitcode(status)
    print(json.dumps(codes))


def _run(job: Job) -> None:
    """Be the command, to the end of the process."""
    os.chdir(job["cwd"])
    os.environ |= {"HOME": str(Path("home").absolute()), "TMPDIR": str(Path("tmp").absolute())}
    tempfile.tempdir = None
    first, *others = job["arguments"]
    sys.path[0] = job["cwd"]
    if first == "-m":
        sys.argv = others
        runpy.run_module(others[0], run_name="__main__", alter_sys=True)
    elif first == "-c":
        sys.argv = ["-c", *others[1:]]
        exec(others[0], {"__name__": "__main__"})
    else:
        sys.argv, sys.path[0] = job["arguments"], str(Path(first).parent)
        runpy.run_path(first, run_name="__main__")


if __name__ == "__main__":
    main()
