"""Machines of users of a hub: a home of their own, and commands that run in processes of their own.

huggingface_hub reads its variables when it is imported, so every command has a fresh one. The processes are forks of
one that has imported all else, which takes most of a command's time.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TextIO

_CONTEXT = multiprocessing.get_context("forkserver")
_OF_COMMANDS = ("runtime.captioner", "runtime.cli.bundle_commands", "runtime.cli.hub_commands", "patchcaption.__main__")
_OF_HUGGINGFACE_HUB = ("httpx2", "httpcore2", "yaml", "filelock")
_CONTEXT.set_forkserver_preload([*_OF_COMMANDS, *_OF_HUGGINGFACE_HUB])  # of these what is installed
_TIMEOUT_S = 120


@dataclass(frozen=True)
class Finished:
    """What a command printed, and how it ended: its exit code, or minus the signal."""

    code: int
    out: str
    err: str


class Job:
    """A command that runs."""

    def __init__(self, arguments: Sequence[str] | str, folder: Path, variables: Mapping[str, str]) -> None:
        out, child_out = _CONTEXT.Pipe(duplex=False)
        err, child_err = _CONTEXT.Pipe(duplex=False)
        self.process = _CONTEXT.Process(target=_run, args=(arguments, folder, dict(variables), child_out, child_err))
        self.process.start()
        child_out.close()
        child_err.close()
        self._out, self._err = _text_of(out), _text_of(err)
        self._said: list[str] = []

    def wait_for(self, text: str) -> None:
        """Read what the command says on stderr until it has said a text."""
        for line in self._lines():
            if text in line:
                return
        raise AssertionError(f"it ended, and said only: {''.join(self._said)}")

    def kill(self) -> None:
        """End the command as the kernel does where memory is short."""
        self.process.kill()
        assert self.finish().code == -9

    def finish(self) -> Finished:
        """Wait for the end of the command."""
        with self._out, self._err:
            for _ in self._lines():
                pass
            out = self._out.read()
        self.process.join(_TIMEOUT_S)
        assert self.process.exitcode is not None
        return Finished(self.process.exitcode, out, "".join(self._said))

    def _lines(self) -> Iterator[str]:
        for line in self._err:
            self._said.append(line)
            yield line


@dataclass(frozen=True)
class Machine:
    """A user's machine.

    Attributes:
        folder: where commands run, and the home.
        variables: of its environment.
    """

    folder: Path
    variables: Mapping[str, str]

    @property
    def cache(self) -> Path:
        """The bundles of the hub."""
        return self.folder / "cache" / "patchcaption" / "hub"

    def start(self, arguments: Sequence[str] | str, **variables: str) -> Job:
        """Start a command of patchcaption, or Python code."""
        return Job(arguments, self.folder, {**self.variables, **variables})

    def run(self, arguments: Sequence[str] | str, **variables: str) -> Finished:
        """Run a command of patchcaption, or Python code."""
        return self.start(arguments, **variables).finish()

    def bundle(self, repository: str) -> Path:
        """Return the only bundle that the cache has of a repository."""
        folders = [path for path in (self.cache / repository.replace("/", "--")).iterdir() if _is_bundle(path)]
        (folder,) = folders
        return folder


def new_machine(folder: Path, endpoint: str) -> Machine:
    """Return a machine whose hub is at an address."""
    folder.mkdir()
    variables = {
        "HF_ENDPOINT": endpoint,
        "HF_HUB_DISABLE_XET": "1",
        "HOME": str(folder),
        "XDG_CACHE_HOME": str(folder / "cache"),
        "XDG_DATA_HOME": str(folder / "data"),
        "TORCH_HOME": str(folder / "torch"),
    }
    return Machine(folder, variables)


def _is_bundle(path: Path) -> bool:
    return path.is_dir() and path.name != "refs" and not path.name.endswith(".part") and not path.name.startswith(".")


def _text_of(connection: Connection) -> TextIO:
    stream = os.fdopen(os.dup(connection.fileno()), encoding="utf-8", errors="replace")
    connection.close()
    return stream


def _run(
    arguments: Sequence[str] | str, folder: Path, variables: Mapping[str, str], out: Connection, err: Connection
) -> None:
    """Be the command."""
    assert "huggingface_hub" not in sys.modules
    for name in [*os.environ]:
        if name.startswith(("HF_", "HUGGING", "TRANSFORMERS_")):
            del os.environ[name]
    os.environ.update(variables)
    os.chdir(folder)
    for number, connection in ((1, out), (2, err)):
        os.dup2(connection.fileno(), number)
        connection.close()
    sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1, closefd=False) for number in (1, 2))
    code = 1
    try:
        code = _call(arguments)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _call(arguments: Sequence[str] | str) -> int:
    if isinstance(arguments, str):
        exec(arguments, {"__name__": "__main__"})
        return 0
    from patchcaption.__main__ import main

    return main(list(arguments))
