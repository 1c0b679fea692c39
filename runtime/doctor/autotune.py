"""Measures which backend is fastest for a bundle on this machine: each runs its engines for a few seconds, in turn."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass

import torch

from runtime.backends import BACKENDS, Backend, BackendName, open_backend
from runtime.bundle import Bundle, ConceptsConfig
from runtime.bundle.graph_io import PIXEL_VALUES
from runtime.decoding import CaptionBank, load_decoder
from runtime.errors import BackendError
from runtime.memory import load_bank
from runtime.options import Precision

BATCH_SIZES = (1, 16)
"""Captions decoded at once."""

_TOKENS = 12
"""Length of a typical caption."""
_SECONDS = 5.0
_MIN_ROUNDS = 3

Clock = Callable[[], float]


@dataclass(frozen=True)
class BackendTiming:
    """The time that a backend took, in ms, each the best of several runs.

    Attributes:
        name: the backend in full, with its version.
        backbone: for one image.
        decoding: for captions of 12 tokens and their prompts, by how many of them at once.
    """

    name: str
    backbone: float
    decoding: dict[int, float]

    @property
    def total(self) -> float:
        """The sum by which backends are compared."""
        return self.backbone + sum(self.decoding.values())


def candidates(bundle: Bundle) -> list[BackendName]:
    """Return the backends of the device that a bundle was built for; those that need plans only if it has such."""
    device = BACKENDS[bundle.manifest.backend].device
    of_device = [spec for spec in BACKENDS.values() if spec.device == device]
    products = {plan.product for plan in bundle.manifest.plans}
    return [spec.name for spec in of_device if not spec.needs_plans or spec.name in products]


def open_all(
    bundle: Bundle, precision: Precision, threads: int | None = None
) -> tuple[dict[BackendName, Backend], dict[BackendName, str]]:
    """Return the backends that can be used here in a precision, and why the others cannot.

    Raises:
        BackendError: none can be used.
    """
    usable: dict[BackendName, Backend] = {}
    refused: dict[BackendName, str] = {}
    for name in candidates(bundle):
        try:
            usable[name] = open_backend(name, threads, precision, bundle)
        except BackendError as error:
            refused[name] = str(error)
    if not usable:
        raise BackendError("no backend can be used: " + "; ".join(dict.fromkeys(refused.values())))
    return usable, refused


def measure(
    bundle: Bundle, backends: Mapping[BackendName, Backend], clock: Clock = time.perf_counter
) -> dict[BackendName, BackendTiming]:
    """Time the backbone and the decoder of a bundle on each backend, in turn, for about five seconds.

    Args:
        clock: returns seconds.

    Raises:
        BackendError: a backend cannot open or run them.
    """
    with ExitStack() as stack:
        bank = _bank_of_prompts(bundle, next(iter(backends.values())).device)
        stages = {name: stack.enter_context(_open_stages(bundle, backend, bank)) for name, backend in backends.items()}
        best = {name: dict.fromkeys(of_backend, float("inf")) for name, of_backend in stages.items()}
        for of_backend in stages.values():  # the first run of all is slower
            for run in of_backend.values():
                run()
        start, rounds = clock(), 0
        while rounds < _MIN_ROUNDS or clock() - start < _SECONDS:
            rounds += 1
            for name, of_backend in stages.items():
                for stage, run in of_backend.items():
                    before = clock()
                    run()
                    best[name][stage] = min(best[name][stage], (clock() - before) * 1e3)
    return {
        name: BackendTiming(backends[name].name, times[0], {rows: times[rows] for rows in BATCH_SIZES})
        for name, times in best.items()
    }


def _bank_of_prompts(bundle: Bundle, device: torch.device) -> CaptionBank | None:
    """Return the memory bank of a bundle whose prompts are made of its captions; else None, as it would not be read."""
    prompt = bundle.manifest.decoder.prompt
    return load_bank(bundle, device) if prompt and isinstance(prompt.hard, ConceptsConfig) else None


@contextmanager
def _open_stages(
    bundle: Bundle, backend: Backend, bank: CaptionBank | None
) -> Iterator[dict[int, Callable[[], object]]]:
    """Yield what is timed on a backend: the backbone (0), and decoding by batch size; close the engines then."""
    manifest = bundle.manifest
    size, width = manifest.backbone.preprocessing.image_size, manifest.backbone.output_dim
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (1, size, size, 3), dtype=torch.uint8, generator=generator)
    vectors = torch.randn(max(BATCH_SIZES), width, generator=generator).to(backend.device)

    with (
        closing(backend.open(bundle.engine("backbone"))) as backbone,
        closing(load_decoder(bundle, backend, bank)) as decoder,
    ):

        def decode(rows: int) -> Callable[[], object]:
            return lambda: decoder.greedy.decode(vectors[:rows].contiguous(), ignore_eos=True, max_new_tokens=_TOKENS)

        inputs = {PIXEL_VALUES: pixels.to(backend.device)}

        def encode() -> None:
            backbone.run(inputs)
            if backend.device.type == "cuda":  # a run is only enqueued; decoding ends with tokens on the host
                torch.cuda.synchronize(backend.device)

        yield {0: encode, **{rows: decode(rows) for rows in BATCH_SIZES}}
