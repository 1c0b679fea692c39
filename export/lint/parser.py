"""NVIDIA's own parser, which needs no GPU, asked what it refuses of a graph: `python -m export.lint --parser`."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TextIO

from export.lint.finding import LintFinding
from runtime.backends.tensorrt.api import TensorRtApi, open_tensorrt
from runtime.backends.tensorrt.rtx import open_tensorrt_rtx
from runtime.errors import BackendError

if TYPE_CHECKING:
    import tensorrt

_NO_GPU = "[checkMacros.cpp::catchCudaError"
"""How the line begins that TensorRT adds to its words where it has no GPU, whatever the fault."""


class ParserProcess:
    """The parser in a process of its own, because a graph may crash it.

    Attributes:
        name: the package that it is of, and its version.
    """

    name = ""

    def __enter__(self) -> ParserProcess:
        """Start the process.

        Raises:
            BackendError: no package with a parser is installed.
        """
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path or str(Path.cwd()) for path in sys.path)}
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            encoding="utf-8",
            env=environment,
        )
        answer = self._read()
        if answer is None or "error" in answer:
            self._stop()
            raise BackendError(answer["error"] if answer else f"the parser cannot be started: {self._end()}")
        self.name = answer["name"]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stop()

    def findings(self, path: Path) -> list[LintFinding]:
        """Return what the parser refuses of a graph, in its own words; nothing if it reads it.

        Raises:
            OSError: the graph cannot be read.
            BackendError: the parser cannot be started.
        """
        with path.open("rb"):
            pass  # the parser would not say that the file is missing
        assert self._process.stdin is not None
        self._process.stdin.write(f"{json.dumps(str(path.absolute()))}\n")
        self._process.stdin.flush()
        answer = self._read()
        if answer is None:
            crash = LintFinding("error", "parser", "graph", f"the parser of {self.name} crashed on it: {self._end()}")
            self._stop()
            self.__enter__()
            return [crash]
        if "error" in answer:
            raise BackendError(answer["error"])
        return [LintFinding(**finding) for finding in answer["findings"]]

    def _read(self) -> dict[str, Any] | None:
        """Return the process's next answer; None if it has ended."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        return json.loads(line) if line else None

    def _end(self) -> str:
        """Say how the process ended."""
        status = self._process.wait()
        return signal.Signals(-status).name if status < 0 else f"exit code {status}"

    def _stop(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()


def open_parser() -> TensorRtApi:
    """Import a package that has the parser: TensorRT-RTX, or else TensorRT, which needs a GPU for it.

    Raises:
        BackendError: neither is installed.
    """
    reasons = []
    for open_package in (open_tensorrt_rtx, open_tensorrt):
        try:
            return open_package()
        except BackendError as error:
            reasons.append(str(error))
    raise BackendError(f"there is no parser of TensorRT: {'; '.join(reasons)}")


def parse(api: TensorRtApi, path: str) -> list[LintFinding]:
    """Return what the parser refuses of a graph, within this process.

    Raises:
        BackendError: the parser cannot be started.
    """
    module = api.module
    builder = api.require(module.Builder(api.logger), f"{path}: starting a builder")
    typed = module.NetworkDefinitionCreationFlag.STRONGLY_TYPED
    network = api.require(builder.create_network(1 << int(typed)), f"{path}: making a network")
    parser = module.OnnxParser(network, api.logger)
    if parser.parse_from_file(path):  # and not from bytes: external weights lie beside the file
        return []
    errors = [_finding(parser.get_error(index)) for index in range(parser.num_errors)]
    return errors or [LintFinding("error", "parser", "graph", f"{api.name} refused it and gave no reason")]


def _finding(error: tensorrt.ParserError) -> LintFinding:
    lines = [line for line in error.desc().splitlines() if not line.startswith(_NO_GPU)]
    location = f"node {error.node_name()!r} ({error.node_operator()})" if error.node_operator() else "graph"
    return LintFinding("error", "parser", location, " ".join(" ".join(lines).split()))


def _serve(requests: TextIO, answers: TextIO) -> None:
    """Answer each path by one line of JSON, after one about the parser."""

    def answer(**fields: object) -> None:
        print(json.dumps(fields), file=answers, flush=True)

    try:
        api = open_parser()
        answer(name=api.name)
        for line in requests:
            answer(findings=[asdict(finding) for finding in parse(api, json.loads(line))])
    except BackendError as error:
        answer(error=str(error))


if __name__ == "__main__":
    # Whatever the libraries print must not come between the answers.
    with os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8") as own_output:
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
        _serve(sys.stdin, own_output)
