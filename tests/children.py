"""Programs that are run by themselves, within a time and an amount of memory, because they may crash or hang."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path

from tests.conftest import ROOT

_LIMIT_MEMORY = "import resource; resource.setrlimit(resource.RLIMIT_AS, ({0} << 20, {0} << 20))\n"


def run_child(
    code: str,
    *arguments: str | Path,
    timeout_s: float = 60,
    memory_mib: int | None = None,
    variables: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run Python code in a process of its own and return what it printed and how it ended.

    Args:
        memory_mib: the address space that it may have.
        variables: of its environment, beside those of this process.

    Raises:
        subprocess.TimeoutExpired: it hangs.
    """
    code = ("" if memory_mib is None else _LIMIT_MEMORY.format(memory_mib)) + textwrap.dedent(code)
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=timeout_s,
        env={**os.environ, "PYTHONPATH": str(ROOT), **(variables or {})},
        check=False,
    )


def run_module(module: str, *arguments: str | Path) -> str:
    """Run a module of the tests in a process of its own and return what it printed; it must succeed."""
    done = subprocess.run(
        [sys.executable, "-m", module, *map(str, arguments)], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def run_fork(call: Callable[[], int]) -> int:
    """Return the result of a call in a fork of this process, or minus the signal that ended it."""
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:  # it must not end as Python ends: what libraries registered for that waits for the parent's threads
        try:
            os.write(write_end, str(call()).encode())
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    os.close(write_end)
    with os.fdopen(read_end) as pipe:
        text = pipe.read()
    _, status = os.waitpid(child, 0)
    assert status == 0 or os.WIFSIGNALED(status), "the call failed"
    return -os.WTERMSIG(status) if os.WIFSIGNALED(status) else int(text)
