"""A real Triton Inference Server on this machine, whose Python backend runs this environment's packages."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Thread

from tests.conftest import ROOT

_HTTP, _GRPC, _METRICS = 8000, 8001, 8002
_STARTS_IN_S, _ENDS_IN_S = 60.0, 30.0
_READY = b"Started Metrics Service"
"""What the server says last of all: the models are loaded before."""


def installed() -> Path | None:
    """Return where `.ci/install-triton` has put the server; None where it has not run."""
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    default = cache / "patchcaption-tests" / f"triton-2.51.0-python{version}"
    folder = Path(os.environ.get("PATCHCAPTION_TRITON") or default)
    return folder if folder.is_dir() else None


@dataclass(frozen=True)
class TritonServer:
    """A server that is ready, or has ended.

    Attributes:
        address: a loopback address of its own, so that no other program has its ports.
        log: the file of all that it says.
    """

    process: subprocess.Popen[bytes]
    address: str
    log: Path

    @property
    def http(self) -> str:
        return f"{self.address}:{_HTTP}"

    @property
    def grpc(self) -> str:
        return f"{self.address}:{_GRPC}"

    @property
    def metrics(self) -> str:
        return f"http://{self.address}:{_METRICS}/metrics"

    def end(self) -> int:
        """Ask it to end; return its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(_ENDS_IN_S)


@contextmanager
def serving(server: Path, models: Path, work: Path, *flags: str, has_numpy_1: bool = True) -> Iterator[TritonServer]:
    """Start a server and wait until it is ready or has ended; it is killed at the end if it still runs.

    Args:
        server: from `installed`.
        models: the repository.
        work: an empty folder for the server's environment and its log.
        has_numpy_1: whether its Python has NumPy 1, or the one of this environment.
    """
    address = f"127.{64 + secrets.randbelow(64)}.{secrets.randbelow(256)}.{1 + secrets.randbelow(254)}"
    triton = server / "nvidia_pytriton" / "pytriton" / "tritonserver"
    arguments = [
        str(triton / "bin" / "tritonserver"),
        *("--model-repository", str(models), "--backend-directory", str(triton / "backends")),
        *("--http-address", address, "--grpc-address", address, "--metrics-address", address),
        *("--http-port", str(_HTTP), "--grpc-port", str(_GRPC), "--metrics-port", str(_METRICS)),
        *flags,
    ]
    environment = _environment(work, [server / "numpy"] if has_numpy_1 else [])
    # The interpreter's own libraries first: the stub would take Debian's libpython, which has another standard library.
    libraries = [sysconfig.get_config_var("LIBDIR"), str(server / "nvidia_pytriton" / "nvidia_pytriton.libs")]
    variables = {
        **os.environ,
        "PATH": os.pathsep.join([str(environment), os.environ["PATH"]]),  # by which the stub finds its packages
        "LD_LIBRARY_PATH": os.pathsep.join(libraries),
        "OMP_NUM_THREADS": "1",
    }
    log, none, pipe = work / "server.log", subprocess.DEVNULL, subprocess.PIPE
    process = subprocess.Popen(
        arguments, stdin=none, stdout=pipe, stderr=subprocess.STDOUT, env=variables, cwd=work, start_new_session=True
    )
    try:
        _wait(process, log)
        yield TritonServer(process, address, log)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _wait(process: subprocess.Popen[bytes], log: Path) -> None:
    """Return when the server is ready, or has ended; what it says goes to the log until it ends."""
    is_settled = Event()

    def read() -> None:
        assert process.stdout is not None
        with process.stdout as lines, log.open("wb", buffering=0) as file:
            for line in lines:
                file.write(line)
                if _READY in line:
                    is_settled.set()
        is_settled.set()

    Thread(target=read, name="log of triton", daemon=True).start()
    assert is_settled.wait(_STARTS_IN_S), log.read_text()
    if _READY not in log.read_bytes():
        process.wait(_ENDS_IN_S)


def _environment(work: Path, folders: Sequence[Path]) -> Path:
    """Make an environment with the packages of some folders, and of this one; return where its programs are."""
    venv.create(work / "environment", symlinks=True)
    packages = Path(sysconfig.get_path("purelib", vars={"base": str(work / "environment")}))
    own = [path for path in sys.path if path.endswith("site-packages")]
    (packages / "all.pth").write_text("\n".join(map(str, [*folders, ROOT, *own])) + "\n")
    return work / "environment" / "bin"
