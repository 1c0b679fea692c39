"""The service as a process of its own, as a user runs it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from tests.conftest import ROOT

_ENDS_IN_S = 60.0
_VARIABLES = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def command(bundle: Path, *flags: str) -> list[str]:
    return [sys.executable, "-W", "ignore", "-m", "patchcaption", "serve", str(bundle), *flags]


@dataclass(frozen=True)
class Service:
    """A service that listens.

    Attributes:
        said: the line that it printed.
        url: without a slash at its end.
    """

    process: subprocess.Popen[str]
    said: str
    url: str

    @property
    def port(self) -> int:
        return int(self.url.rsplit(":", 1)[1])

    def ended(self) -> tuple[int, str]:
        """Wait for its end; return its exit code, and what it printed since it listens."""
        out, errors = self.process.communicate(timeout=_ENDS_IN_S)
        return self.process.returncode, out + errors


@contextmanager
def serving(bundle: Path, *flags: str, port: int = 0, before: Sequence[str] = ()) -> Iterator[Service]:
    """Serve a bundle from a process of its own, which is killed at the end if it still runs.

    Args:
        before: a command that runs the service: nohup.
    """
    arguments = [*before, *command(bundle, "--port", str(port), *flags)]
    pipe, none = subprocess.PIPE, subprocess.DEVNULL
    with subprocess.Popen(
        arguments, stdin=none, stdout=pipe, stderr=pipe, text=True, env=_VARIABLES, preexec_fn=_handle_signals
    ) as process:
        try:
            assert process.stdout is not None
            said = process.stdout.readline()
            assert said, process.communicate()
            service = Service(process, said, said.rsplit(" ", 1)[1].strip())
            assert httpx.get(f"{service.url}/readyz").status_code == 200
            yield service
        finally:
            process.kill()


def _handle_signals() -> None:
    """Let signals do what they do by default, which whoever runs the tests may have changed: nohup, or a shell's &."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def run(bundle: Path, *flags: str, stdout: int = subprocess.PIPE) -> subprocess.CompletedProcess[str]:
    """Run the command where it is refused."""
    return subprocess.run(
        command(bundle, *flags),
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        env=_VARIABLES,
        timeout=_ENDS_IN_S,
        check=False,
    )
