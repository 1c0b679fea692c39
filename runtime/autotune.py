"""Which backend is fastest for a bundle on this machine: each runs its engines for a few seconds, in turns."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass

import torch

from runtime.backends import Backend, Engine, open_backend
from runtime.backends.selection import BackendName
from runtime.bundle import Bundle
from runtime.decoding.greedy import decode
from runtime.errors import BackendError
from runtime.options import Precision

NAMES: tuple[BackendName, ...] = ("cpu", "openvino")
ROWS = (1, 16)
"""Captions decoded at once."""

_STEPS = 12
"""Of a typical caption."""
_SECONDS = 5.0
_LEAST_ROUNDS = 3

Clock = Callable[[], float]


@dataclass(frozen=True)
class Timing:
    """What a backend took, in ms, each the best of several.

    Attributes:
        name: the backend in full, with its version.
        backbone: for one image.
        decoding: for captions of 12 tokens, by how many of them at once.
    """

    name: str
    backbone: float
    decoding: dict[int, float]

    @property
    def total(self) -> float:
        return self.backbone + sum(self.decoding.values())


def open_all(
    bundle: Bundle, precision: Precision, threads: int | None = None
) -> tuple[dict[BackendName, Backend], dict[BackendName, str]]:
    """The backends that can be used here in a precision, and why the others cannot.

    Raises:
        BackendError: none can be used.
    """
    usable: dict[BackendName, Backend] = {}
    refused: dict[BackendName, str] = {}
    for name in NAMES:
        try:
            usable[name] = open_backend(name, threads, precision, bundle)
        except BackendError as error:
            refused[name] = str(error)
    if not usable:
        raise BackendError("no backend can be used: " + "; ".join(dict.fromkeys(refused.values())))
    return usable, refused


def measure(
    bundle: Bundle, backends: Mapping[BackendName, Backend], clock: Clock = time.perf_counter
) -> dict[BackendName, Timing]:
    """Times the backbone and the decoder of a bundle on each backend, in turns, for about five seconds.

    Args:
        clock: gives seconds.

    Raises:
        BackendError: a backend cannot open or run them.
    """
    with ExitStack() as stack:
        work = {name: stack.enter_context(_opened(bundle, backend)) for name, backend in backends.items()}
        best = {name: dict.fromkeys(of_one, float("inf")) for name, of_one in work.items()}
        for of_one in work.values():  # the first run of all is slower
            for run in of_one.values():
                run()
        start, rounds = clock(), 0
        while rounds < _LEAST_ROUNDS or clock() - start < _SECONDS:
            rounds += 1
            for name, of_one in work.items():
                for stage, run in of_one.items():
                    before = clock()
                    run()
                    best[name][stage] = min(best[name][stage], (clock() - before) * 1e3)
    return {
        name: Timing(backends[name].name, of_one[0], {rows: of_one[rows] for rows in ROWS})
        for name, of_one in best.items()
    }


@contextmanager
def _opened(bundle: Bundle, backend: Backend) -> Iterator[dict[int, Callable[[], object]]]:
    """What is to be timed on a backend: the backbone (0), and decoding by rows; its engines are closed afterwards."""
    manifest = bundle.manifest
    seen, settings = manifest.architecture, manifest.decoding
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (1, seen.size, seen.size, 3), dtype=torch.uint8, generator=generator)
    vectors = torch.randn(max(ROWS), seen.width, generator=generator).to(backend.device)

    def decoding(engine: Engine, rows: int) -> Callable[[], object]:
        return lambda: decode(engine, settings, vectors[:rows].contiguous(), past_end=True, at_most=_STEPS)

    with (
        closing(backend.open(bundle.path(manifest.backbone.file))) as backbone,
        closing(backend.open(bundle.path(manifest.decoder.file))) as decoder,
    ):
        inputs = {"pixels": pixels.to(backend.device)}
        yield {0: lambda: backbone.run(inputs), **{rows: decoding(decoder, rows) for rows in ROWS}}
