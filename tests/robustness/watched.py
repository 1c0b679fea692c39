"""Runs commands under strace and returns what they did to the machine: connections, and files opened to write.

What is watched may be one process with its own start, or several commands, each in a fork of one process: importing
torch under strace takes longer than most of them take.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.conftest import ROOT
from tests.robustness.watched_forks import BEGINS, Job

_QUIET_VARIABLES = ("CI", "TF_BUILD", "JENKINS_URL", "ORT_DISABLE_TELEMETRY", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
"""What makes libraries report nothing: a user has none of them."""
_OTHERS = ("XDG_", "PYTEST_", "TORCHINDUCTOR_")
"""Variables of folders that are not the user's, and of this test run."""

_NETWORK = re.compile(r"\b(?:socket|connect|sendto|sendmsg|sendmmsg|bind)\(.*\b(?:AF|PF)_(?:INET6?|NETLINK|PACKET)\b.*")
_HOST_SERVICE = re.compile(r"\bconnect\(.*sun_path=\"[^\"]*(?:resolve|avahi)[^\"]*\".*")
_CALL = re.compile(r"^\d+ +(?:<\.\.\. )?(\w+)\(?(.*)$")
_PATH = re.compile(r'(?:AT_FDCWD<(?P<cwd>[^>]*)>|\d+<(?P<folder>[^>]*)>)?(?:, )?"(?P<path>(?:[^"\\]|\\.)*)"')
_WRITES = re.compile(r"O_WRONLY|O_RDWR|O_CREAT|O_TRUNC|O_APPEND|O_TMPFILE")
_DEVICES = ("/dev/null", "/dev/tty", "/proc/self")
_SEMAPHORES = "/dev/shm/sem."
"""Those of progress bars, which several processes could share."""
_CHANGING = (
    "mkdir,mkdirat,unlink,unlinkat,rmdir,rename,renameat,renameat2,link,linkat,symlink,symlinkat,truncate,chmod,fchmodat,"
    "chown,fchownat,mknod,mknodat,utimensat,setxattr"
)


@dataclass(frozen=True)
class Watched:
    """What a command did.

    Attributes:
        exit_code: its own.
        out: what it printed.
        err: what it printed on stderr.
        network: calls that open or use a network connection, or ask a service of this machine for a host.
        written: the absolute paths that it opened to write, made, renamed, changed or removed, or tried to.
    """

    exit_code: int
    out: str
    err: str
    network: list[str]
    written: set[Path]

    @property
    def output(self) -> str:
        """All that it printed."""
        return self.out + self.err


def watch(
    arguments: Sequence[str],
    cwd: Path,
    home: Path,
    variables: Mapping[str, str] | None = None,
    meanwhile: Callable[[str, int], None] | None = None,
    path: Path = ROOT,
) -> Watched:
    """Run Python with these arguments as a user would who has ``home``, and no variable that mutes libraries.

    Args:
        variables: more of the environment.
        meanwhile: is called with the first line that the command prints, and its process id.
        path: where its packages are.
    """
    code, out, err, lines = _trace(arguments, cwd, _environment(cwd, home, path) | dict(variables or {}), meanwhile)
    return _watched(code, out, err, lines, cwd)


def watch_forks(
    jobs: Sequence[Job], cwd: Path, home: Path, modules: Sequence[str]
) -> tuple[Watched, dict[str, Watched]]:
    """Run commands one after another, each in a fork of one process; return what their start did, and what each did.

    Args:
        modules: what the process imports.
    """
    list_of_jobs = cwd / "jobs.json"
    list_of_jobs.write_text(json.dumps(jobs))
    arguments = ["-m", "tests.robustness.watched_forks", str(list_of_jobs), *modules]
    code, out, err, lines = _trace(arguments, cwd, _environment(cwd, home, ROOT), None)
    assert code == 0, out + err
    codes = json.loads(out.splitlines()[-1])
    begins = [number for number, line in enumerate(lines) if f'"{BEGINS}/' in line]
    assert len(begins) == len(codes) == len(jobs)
    done = {}
    for job, begin, end in zip(jobs, begins, [*begins[1:], len(lines)], strict=True):
        done[job["name"]] = _watched(codes[job["name"]], out, err, lines[begin:end], Path(job["cwd"]))
    return _watched(code, out, err, lines[: begins[0]], cwd), done


def _environment(cwd: Path, home: Path, path: Path) -> dict[str, str]:
    tmp = cwd / "tmp"
    tmp.mkdir(exist_ok=True)
    environment = {name: value for name, value in os.environ.items() if name not in _QUIET_VARIABLES}
    environment = {name: value for name, value in environment.items() if not name.startswith(_OTHERS)}
    users = {"HOME": str(home), "TMPDIR": str(tmp), "PYTHONPATH": str(path), "PYTHONDONTWRITEBYTECODE": "1"}
    return environment | users


def _trace(
    arguments: Sequence[str],
    cwd: Path,
    environment: Mapping[str, str],
    meanwhile: Callable[[str, int], None] | None,
) -> tuple[int, str, str, list[str]]:
    """Run Python; return its exit code, what it printed on stdout and on stderr, and its calls, a line each."""
    log = cwd.parent / f"{cwd.name}.strace"
    traced = f"trace=socket,connect,sendto,sendmsg,sendmmsg,bind,open,openat,openat2,creat,{_CHANGING}"
    strace = ["strace", "--follow-forks", "--decode-fds=path", "--string-limit=4096", "--seccomp-bpf", "-qq"]
    with subprocess.Popen(
        [*strace, "-e", traced, "-o", str(log), sys.executable, *arguments],
        cwd=cwd,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            first = ""
            if meanwhile is not None and process.stdout is not None:
                first = process.stdout.readline()
                meanwhile(first, _child_of(process.pid))
            out, err = process.communicate(timeout=600)
        finally:
            process.kill()
    return process.returncode, first + out, err, log.read_text(errors="replace").splitlines()


def _watched(code: int, out: str, err: str, lines: Sequence[str], cwd: Path) -> Watched:
    network = [line for line in lines if _NETWORK.search(line) or _HOST_SERVICE.search(line)]
    return Watched(code, out, err, network, {path for line in lines for path in _written(line, cwd)})


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


def make_home(folder: Path) -> None:
    """Make the folders that a command has: for its outputs, its user's home and temporary files."""
    for name in ("out", "home", "tmp"):
        (folder / name).mkdir(parents=True)


def check(watched: Watched, folder: Path, outputs: str = "out") -> None:
    """Fail if a command did anything beside its work."""
    assert watched.exit_code == 0, watched.output
    assert watched.network == []
    assert unexpected(watched, folder, outputs) == set()
    assert [path for path in (folder / "tmp").rglob("*") if path.is_file()] == []


def unexpected(watched: Watched, folder: Path, outputs: str = "out") -> set[Path]:
    """Return what was written outside the named outputs, the documented folders and the folder for temporary files."""
    home = folder / "home"
    folders = (folder / outputs, folder / "tmp", home / ".cache/patchcaption", home / ".local/share/patchcaption")
    parents = {parent for one in folders for parent in one.parents if parent.is_relative_to(home)}
    return {
        path
        for path in watched.written - parents
        if not any(path.is_relative_to(one) for one in (*folders, *_DEVICES)) and not str(path).startswith(_SEMAPHORES)
    }
