"""Runs a command under strace and returns what it did to the machine: connections and files that it opened to write."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.conftest import ROOT

_QUIET_VARIABLES = ("CI", "TF_BUILD", "JENKINS_URL", "ORT_DISABLE_TELEMETRY", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
"""What makes libraries report nothing: a user has none of them."""
_OTHERS = ("XDG_", "PYTEST_", "TORCHINDUCTOR_")
"""Variables of folders that are not the user's, and of this test run."""

_NETWORK = re.compile(r"\b(?:socket|connect|sendto|sendmsg|sendmmsg|bind)\(.*\b(?:AF|PF)_(?:INET6?|NETLINK|PACKET)\b.*")
_HOST_SERVICE = re.compile(r"\bconnect\(.*sun_path=\"[^\"]*(?:resolve|avahi)[^\"]*\".*")
_CALL = re.compile(r"^\d+ +(?:<\.\.\. )?(\w+)\(?(.*)$")
_PATH = re.compile(r'(?:AT_FDCWD<(?P<cwd>[^>]*)>|\d+<(?P<folder>[^>]*)>)?(?:, )?"(?P<path>(?:[^"\\]|\\.)*)"')
_WRITES = re.compile(r"O_WRONLY|O_RDWR|O_CREAT|O_TRUNC|O_APPEND|O_TMPFILE")
_CHANGING = (
    "mkdir,mkdirat,unlink,unlinkat,rmdir,rename,renameat,renameat2,link,linkat,symlink,symlinkat,truncate,chmod,fchmodat,"
    "chown,fchownat,mknod,mknodat,utimensat,setxattr"
)


@dataclass(frozen=True)
class Watched:
    """What a command did.

    Attributes:
        exit_code: its own.
        output: what it printed.
        network: calls that open or use a network connection, or ask a service of this machine for a host.
        written: the absolute paths that it opened to write, made, renamed, changed or removed, or tried to.
    """

    exit_code: int
    output: str
    network: list[str]
    written: set[Path]


def watch(
    arguments: Sequence[str],
    cwd: Path,
    home: Path,
    variables: Mapping[str, str] | None = None,
    meanwhile: Callable[[str, int], None] | None = None,
) -> Watched:
    """Run Python with these arguments as a user would who has ``home``, and no variable that mutes libraries.

    Args:
        variables: more of the environment.
        meanwhile: is called with the first line that the command prints, and its process id.
    """
    log = cwd.parent / f"{cwd.name}.strace"
    tmp = cwd / "tmp"
    tmp.mkdir(exist_ok=True)
    environment = {name: value for name, value in os.environ.items() if name not in _QUIET_VARIABLES}
    environment = {name: value for name, value in environment.items() if not name.startswith(_OTHERS)}
    environment |= {"HOME": str(home), "TMPDIR": str(tmp), "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    environment |= variables or {}
    traced = f"trace=socket,connect,sendto,sendmsg,sendmmsg,bind,open,openat,openat2,creat,{_CHANGING}"
    strace = ["strace", "--follow-forks", "--decode-fds=path", "--string-limit=4096", "--seccomp-bpf", "-qq"]
    with subprocess.Popen(
        [*strace, "-e", traced, "-o", str(log), sys.executable, *arguments],
        cwd=cwd,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        try:
            first = ""
            if meanwhile is not None and process.stdout is not None:
                first = process.stdout.readline()
                meanwhile(first, _child_of(process.pid))
            output = first + process.communicate(timeout=240)[0]
        finally:
            process.kill()
    lines = log.read_text(errors="replace").splitlines()
    network = [line for line in lines if _NETWORK.search(line) or _HOST_SERVICE.search(line)]
    return Watched(process.returncode, output, network, {path for line in lines for path in _written(line, cwd)})


def _child_of(pid: int) -> int:
    """Return the process that strace has started."""
    return int(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0])


def _written(line: str, cwd: Path) -> list[Path]:
    """Return the paths that one traced call writes to."""
    match = _CALL.match(line)
    if match is None:
        return []
    call, rest = match.groups()
    changes = call in _CHANGING.split(",") or call == "creat"
    if not (changes or (call in ("open", "openat", "openat2") and _WRITES.search(rest))):
        return []
    found = []
    for part in _PATH.finditer(rest):
        base = part["cwd"] or part["folder"] or cwd
        found.append(Path(os.path.normpath(Path(base) / part["path"])))
    return found
