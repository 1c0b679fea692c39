"""Modules of the tests that are imported once and run often: their imports take seconds, a fork a few milliseconds.

`python -m tests.warm_module MODULE` is such a process. It imports MODULE and forks for each line that it is given, a
`WarmRun`; the fork calls MODULE's `main`, and how it ended is the line that answers.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from types import TracebackType
from typing import TypedDict

ROOT = Path(__file__).parent.parent  # not that of conftest, which imports much: a module may instrument what it imports


class WarmRun(TypedDict):
    """The arguments of a run, and the files for what it prints."""

    arguments: list[str]
    stdout: str
    stderr: str


class WarmModule:
    """A module of the tests in a process of its own; a run of it that crashes ends neither that nor the next run."""

    def __init__(self, module: str) -> None:
        command = [sys.executable, "-m", "tests.warm_module", module]
        # By a shell: a process begins with the peak of memory of the one that starts it, here that of all tests before.
        by_shell = ["sh", "-c", '"$@"; exit $?', "sh", *command]
        self._process = subprocess.Popen(by_shell, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT)

    def __enter__(self) -> WarmModule:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._process.communicate()

    def run(self, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        """Call the module's `main` with arguments of the command line; return what it printed and how it ended."""
        given, answers = self._process.stdin, self._process.stdout
        assert given is not None
        assert answers is not None
        with tempfile.TemporaryDirectory() as folder:
            printed = Path(folder, "stdout"), Path(folder, "stderr")
            run = WarmRun(arguments=[*map(str, arguments)], stdout=str(printed[0]), stderr=str(printed[1]))
            print(json.dumps(run), file=given, flush=True)
            answer = answers.readline()
            assert answer, "the process of the module has ended"
            stdout, stderr = (file.read_text(encoding="utf-8", errors="replace") for file in printed)
        return subprocess.CompletedProcess(run["arguments"], int(answer), stdout, stderr)


def serve(module: str) -> None:
    """Import a module and run it in a fork for each line that comes in."""
    gc.disable()  # it would look through a million objects at every import
    main = importlib.import_module(module).main
    gc.freeze()
    gc.enable()
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            _take_place(module, json.loads(line))
            sys.exit(main())
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


def _take_place(module: str, run: WarmRun) -> None:
    """Let this process read nothing, print to the files of a run, and have its arguments."""
    flags = os.O_WRONLY | os.O_CREAT
    opened = os.open(os.devnull, os.O_RDONLY), os.open(run["stdout"], flags), os.open(run["stderr"], flags)
    for descriptor, file in enumerate(opened):
        os.dup2(file, descriptor)
        os.close(file)
    sys.argv = [module, *run["arguments"]]


if __name__ == "__main__":
    serve(sys.argv[1])
