"""Load a service, a process of its own, with one client and with many, in turns: `python benchmarks/service.py`.

Two mixes of calls: "pages" is what people at the page do (an image is encoded, then many captions of it are asked),
"uploads" is `POST /v1/captions` alone. All captions are compared with the library's. Beside the rates stands what the
machine can do: images a second of the backbone alone, captions a second of the decoder alone.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import resource
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

if not __package__:  # run by its path: the packages of this clone, whatever is installed
    sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.timing.http_clients import Step, Tally, ask_at_once
from benchmarks.timing.http_sessions import MIXES, scenes
from benchmarks.timing.machine_limits import calls_a_second, machine_line
from export.command_line import bundle_folder, run_command
from runtime import Captioner, PatchcaptionError, Point, Region

_ROOT = Path(__file__).parents[1]
_WARM_UP_S = 3.0
_CEILING_BATCHES = (1, 2, 4, 8)
_CEILING_S = 2.0


@dataclass(frozen=True)
class Turn:
    """One load of the service.

    Attributes:
        seconds: that it took.
        server_cores: that the server had busy on average.
        client_cores: that the clients had.
    """

    clients: int
    tally: Tally
    seconds: float
    server_cores: float
    client_cores: float

    @property
    def rate(self) -> float:
        """Right answers a second."""
        return self.tally.answers / self.seconds


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    parser = argparse.ArgumentParser(description="Load a service with one client and with many.")
    parser.add_argument(
        "bundle", type=bundle_folder, nargs="?", default=Path("engines/demo"), help="default: %(default)s"
    )
    parser.add_argument("--clients", type=int, default=64, help="default: %(default)s")
    parser.add_argument("--seconds", type=float, default=60.0, help="of the many clients (default: %(default)s)")
    parser.add_argument("--mix", choices=tuple(MIXES), nargs="+", default=list(MIXES))
    parser.add_argument("--serve", default="", metavar="FLAGS", help='more of `patchcaption serve`: "--workers 1"')
    return run_command(partial(_run, parser.parse_args(arguments)))


def _run(options: argparse.Namespace) -> None:
    if options.clients < 1 or not options.seconds > 0:
        raise PatchcaptionError("--clients, --seconds: expected at least 1")
    console = Console(width=140)
    with Captioner.load(options.bundle) as captioner:
        mixes = {name: MIXES[name](captioner) for name in options.mix}
        console.print(_ceilings(captioner), markup=False)
    console.print(machine_line(), markup=False)
    for name, sessions in mixes.items():
        with _serving(options.bundle, options.serve.split()) as (pid, port):
            _load(pid, port, sessions, options.clients, _WARM_UP_S)
            first = _load(pid, port, sessions, 1, options.seconds / 4)
            many = _load(pid, port, sessions, options.clients, options.seconds)
            last = _load(pid, port, sessions, 1, options.seconds / 4)
        _show(console, name, [first, many, last])


def _load(pid: int, port: int, sessions: Sequence[Sequence[Step]], clients: int, seconds: float) -> Turn:
    before, start = (_cpu_s(pid), _own_cpu_s()), time.perf_counter()
    tally = asyncio.run(ask_at_once(port, sessions, clients, seconds))
    took = time.perf_counter() - start
    return Turn(clients, tally, took, (_cpu_s(pid) - before[0]) / took, (_own_cpu_s() - before[1]) / took)


def _show(console: Console, name: str, turns: Sequence[Turn]) -> None:
    table = Table(title=f"{name}: ms", box=box.MARKDOWN)
    for heading in ("clients", "call", "answers", "p50", "p99", "rejected"):
        table.add_column(heading, justify="left" if heading == "call" else "right")
    for turn in turns:
        for call, ms in sorted(turn.tally.ms.items()):
            p50, p99 = np.percentile(ms, (50, 99))
            rejected = turn.tally.rejected.get(call, 0)
            share = f"{rejected / (rejected + len(ms)):.1%}"
            table.add_row(str(turn.clients), call, str(len(ms)), f"{p50:.1f}", f"{p99:.1f}", share)
    console.print(table)
    for turn in turns:
        console.print(
            f"- {turn.clients} clients, {turn.seconds:.0f} s: {turn.rate:.1f} answers/s, "
            f"{turn.tally.captions / turn.seconds:.1f} captions/s; cores busy: server {turn.server_cores:.2f}, clients "
            f"{turn.client_cores:.2f}; wrong answers: {len(turn.tally.wrong)}",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
        for wrong in turn.tally.wrong[:3]:
            console.print(f"  - {wrong}", markup=False, highlight=False, soft_wrap=True)
    alone = statistics.mean(turn.rate for turn in turns if turn.clients == turns[0].clients)
    console.print(f"- ratio: {turns[1].rate / alone:.2f}\n", markup=False)


def _ceilings(captioner: Captioner) -> str:
    """Return what the machine does where nobody serves: the backbone's images and the decoder's captions a second."""
    images = list(scenes())
    encoding = {n: n * calls_a_second(partial(captioner.encode, images[:n]), _CEILING_S) for n in _CEILING_BATCHES}
    features = captioner.encode(images[0])
    regions: list[Region] = [Point(10 + 5 * number, 20) for number in range(64)]
    describing = 64 * calls_a_second(partial(captioner.describe, features, regions), _CEILING_S)
    best = max(encoding, key=lambda n: encoding[n])
    return (
        f"- the library alone: {encoding[best]:.1f} images/s in batches of {best} ({encoding[1]:.1f} one by one), "
        f"{describing:,.0f} captions/s in batches of 64"
    )


@contextmanager
def _serving(bundle: Path, flags: Sequence[str]) -> Iterator[tuple[int, int]]:
    """Serve a bundle from a process of its own; yield the process's number and the port."""
    command = [sys.executable, "-m", "patchcaption", "serve", str(bundle), "--port", "0", *flags]
    variables = {**os.environ, "PYTHONPATH": str(_ROOT)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=variables) as server:
        assert server.stdout is not None
        try:
            said = server.stdout.readline()
            if not said:
                raise PatchcaptionError(f"{' '.join(command)}: ended with code {server.wait()}")
            yield server.pid, int(said.rsplit(":", 1)[1])
        finally:
            server.send_signal(signal.SIGTERM)


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _own_cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    sys.exit(main())
