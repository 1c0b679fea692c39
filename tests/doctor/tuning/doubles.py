"""Stand-ins for what is tuned: a clock that goes on only where something takes time, and backends by that clock."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from runtime import BackendError
from runtime.backends import EngineReport
from runtime.backends.base import BindableEngine
from runtime.bundle import Bundle, EngineFiles
from runtime.bundle.graph_io import present_names

FIRST_RUN = 10
"""How many times as long as others the first run of an engine takes."""


@dataclass
class FakeClock:
    """A clock that goes on only where something takes time."""

    seconds: float = 0.0

    def __call__(self) -> float:
        return self.seconds

    def take(self, seconds: float) -> Callable[[], None]:
        """Return a function that takes so long."""

        def run() -> None:
            self.seconds += seconds

        return run


@dataclass
class FakeBackend:
    """A backend whose engines take a fixed time, and say one word again and again.

    Attributes:
        seconds: of each run, by the name of the graph.
        word: the id of the token.
        tilt: how far its tokens are from those of others.
    """

    name: str
    clock: FakeClock
    bundle: Bundle
    seconds: Mapping[str, float]
    word: int = 5
    tilt: float = 0.0
    open_engines: list[FakeEngine] = field(default_factory=list)
    device = torch.device("cpu")
    needs_warm_up = False

    def open(self, files: EngineFiles, concurrency: int = 1) -> FakeEngine:  # noqa: ARG002
        engine = FakeEngine(self, files.graph.stem)
        self.open_engines.append(engine)
        return engine


@dataclass
class FakeEngine:
    backend: FakeBackend
    graph: str
    runs: int = 0
    bindable: BindableEngine | None = None

    def run(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        self.backend.clock.seconds += self.backend.seconds[self.graph] * (1 if self.runs else FIRST_RUN)
        self.runs += 1
        rows = len(next(iter(inputs.values())))
        return self._encoded(rows) if self.graph == "backbone" else self._decoded(rows)

    def _encoded(self, images: int) -> dict[str, Tensor]:
        config = self.backend.bundle.manifest.backbone
        tokens = torch.ones(images, config.tokens.num_tokens, config.output_dim)
        tokens[..., 0] += self.backend.tilt
        return {
            "tokens": tokens,
            "cls_attention_logits": torch.zeros(images, config.attention_heads, config.tokens.num_patches),
        }

    def _decoded(self, rows: int) -> dict[str, Tensor]:
        config = self.backend.bundle.manifest.decoder
        entry = torch.zeros(rows, config.num_heads, 1, config.head_dim)
        words = torch.full((rows,), self.backend.word, dtype=torch.int64)
        return {
            "next_token_ids": words,
            "log_probs": torch.zeros(rows),
            **dict.fromkeys(present_names(config.num_layers), entry),
        }

    def report(self) -> EngineReport:
        return EngineReport("nothing")

    def close(self) -> None:
        self.backend.open_engines.remove(self)


@dataclass
class FakeMachine:
    """A machine that opens doubles in the place of backends.

    Attributes:
        speeds: the seconds of each graph's runs, by backend, precision and threads; there is no other combination.
        words: what is said in a precision, if not the usual.
    """

    clock: FakeClock
    speeds: Mapping[tuple[str, str, int | None], Mapping[str, float]]
    words: Mapping[str, int] = field(default_factory=dict)
    backends: list[FakeBackend] = field(default_factory=list)

    def open_backend(self, name: str, threads: int | None, precision: str, bundle: Bundle) -> FakeBackend:
        """Open a double, as `runtime.backends.open_backend` opens a backend."""
        speed = self.speeds.get((name, precision, threads))
        if speed is None:
            raise BackendError(f"no {name} in {precision} here")
        backend = FakeBackend(
            name, self.clock, bundle, speed, self.words.get(precision, 5), 3.0 * (precision == "bf16")
        )
        self.backends.append(backend)
        return backend

    @property
    def num_open(self) -> int:
        """How many engines are open."""
        return sum(len(backend.open_engines) for backend in self.backends)
