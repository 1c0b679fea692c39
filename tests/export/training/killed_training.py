"""Trains a small decoder again and again and ends it at another moment each time. Run by test_interruptions.py.

Usage: killed_training.py FOLDER ENDING:POINTS... An ending is a signal's name, sent when a training touches the file
system for the n-th time; TIME for a kill after a random time; or FULL for a disk that takes no more. Each is gone on
with by the same command, and must end as a training that was never interrupted. Its last line tells of each ending how
many trainings did not come to their own end.

Modules are imported once; each training is a fork.
"""

from __future__ import annotations

import gc
import os
import random
import resource
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from matplotlib import figure  # noqa: F401  # as those below, imported where it is used
from matplotlib.backends import backend_agg  # noqa: F401
from transformers import CLIPTextModelWithProjection, GPT2LMHeadModel  # noqa: F401

from export import train_decoder
from tests.children import run_fork
from tests.export.training.conftest import SMALL, write_captions

EVENTS = frozenset({"open", "os.rename", "os.mkdir", "os.rmdir", "os.remove", "os.chmod", "os.link", "os.truncate"})
EXPECTED = {"SIGKILL": -signal.SIGKILL, "SIGTERM": 143, "SIGHUP": 129, "SIGINT": 130, "FULL": 1}
EXPECTED["TIME"] = -signal.SIGALRM
"""How a training ends: its exit code, or minus its signal."""
OUTPUTS = ("decoder.csv", "decoder.h5", "decoder.png", "decoder.pt", "decoder.yaml")
STEPS = "15"
"""Each is saved, so a moment of one is like that of another; of 30, trainings take twice the time."""


def main() -> None:
    folder, endings = Path(sys.argv[1]), [argument.split(":") for argument in sys.argv[2:]]
    torch.set_num_threads(1)
    write_captions(folder / "captions.txt", 300)
    gc.freeze()  # the modules' objects: to go through them would copy their memory in each fork
    events = run_fork(lambda: train(folder / "whole", counted=True))
    expected = contents(folder / "whole")
    seconds = time.monotonic()
    assert run_fork(lambda: train(folder / "again")) == 0
    assert contents(folder / "again") == expected
    totals = {"TIME": time.monotonic() - seconds, "FULL": max(map(len, expected.values()))}
    ended = []
    for ending, points in endings:
        chosen = moments(ending, int(points), totals.get(ending, events))
        ended.append(sum(end(folder / "ended", ending, moment, expected) for moment in chosen))
    print(*ended)


def moments(ending: str, points: int, total: float) -> Iterator[float]:
    """Yield so many moments from the beginning to the end: random, and of events each from its share of them."""
    chance = random.Random(ending)
    for point in range(points):
        yield total * (chance.random() if ending == "TIME" else (point + chance.random()) / points)


def end(out: Path, ending: str, moment: float, expected: dict[str, bytes]) -> bool:
    """End a training, go on with it, and compare; return whether it did not come to its own end."""
    for path in out.parent.glob("*ended*"):
        if path.is_file():
            path.unlink()
    out.mkdir(exist_ok=True)
    for path in out.iterdir():
        assert path.name in OUTPUTS, f"{path} was left"
        path.unlink()
    (out / "decoder.pt").write_bytes(b"an older decoder")
    code = run_fork(lambda: train(out, ending, moment))
    assert code in (0, EXPECTED[ending]), f"{ending} at {moment}: {code}"
    found = (out / "decoder.pt").read_bytes()
    assert found in (b"an older decoder", expected["decoder.pt"]), "neither the old one nor the new"
    if found == expected["decoder.pt"]:
        assert contents(out) == expected, "where the decoder is, all else is"
    assert run_fork(lambda: train(out)) == 0
    assert contents(out) == expected, f"{ending} at {moment}: another result"
    left = {path.name for path in out.iterdir()} - set(OUTPUTS)
    assert not [name for name in left if ".part" not in name or name.startswith(".")], left
    for name in left:  # small files that were killed while they took their places
        (out / name).unlink()
    return code != 0


def contents(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in OUTPUTS}


def train(out: Path, ending: str = "", moment: float = 0, counted: bool = False) -> int:
    """Train, and return the exit code, or how many times that touched the file system."""
    out.mkdir(exist_ok=True)
    count = 0

    def audit(event: str, _: tuple[object, ...]) -> None:
        nonlocal count
        count += event in EVENTS
        if event in EVENTS and ending in signal.Signals.__members__ and count == max(1, int(moment)):
            os.kill(os.getpid(), signal.Signals[ending])

    if ending == "TIME":  # its default action ends a process where it is, as SIGKILL does
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_REAL, max(1e-6, moment))
    elif ending == "FULL":
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(moment), int(moment)))
    elif ending or counted:
        sys.addaudithook(audit)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which shells turn off in the background
    arguments = [str(out.parent / "captions.txt"), "--out", str(out / "decoder.pt"), *SMALL]
    code = train_decoder.main([*arguments, "--steps", STEPS, "--save-seconds", "0"])
    return count if counted else code


if __name__ == "__main__":
    main()
