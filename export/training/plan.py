"""What is trained, and how: the options of a training."""

from __future__ import annotations

import hashlib
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from export.checkpoint import CheckpointError
from export.models.decap_decoder import PUBLISHED_HEADS
from export.training.decoder import DecoderSize
from export.training.processes import Processes
from export.training.trainer import Optimization, Precision
from runtime.bundle import sha256_of

DecoderKind: TypeAlias = Literal["decap", "capdec"]


@dataclass(frozen=True)
class _Range:
    """The numbers that an option may be.

    Attributes:
        least: the smallest.
        below: what they are smaller than.
        excludes_least: whether they are larger than ``least``.
    """

    option: str
    least: float = 0
    below: float = math.inf
    excludes_least: bool = False

    def check(self, number: float | None) -> None:
        """Raise CheckpointError if a number is none of them; None, for an option that is left out, is one."""
        if number is None or (self.least <= number < self.below and not (self.excludes_least and number == self.least)):
            return
        expected = f"more than {self.least:g}" if self.excludes_least else f"at least {self.least:g}"
        below = f", less than {self.below:g}" if self.below < math.inf else ""
        kind = "number" if math.isfinite(number) else "finite number"
        raise CheckpointError(f"--{self.option}: expected a {kind} of {expected}{below}, got {number}")


_RANGES = (
    _Range("noise"),
    _Range("rate", excludes_least=True),
    _Range("warmup-steps"),
    _Range("weight-decay"),
    _Range("label-smoothing", below=1),
    _Range("clip-norm", excludes_least=True),
    _Range("tokens", least=2),
    _Range("dropout", below=1),
    _Range("held-out"),
    _Range("seed"),
)


@dataclass(frozen=True)
class DecoderPlan:
    """What is trained, and how; the defaults are the published numbers.

    Attributes:
        kind: "decap" learns from the embeddings, for vectors that are projected onto a memory bank; "capdec" from
            noisy ones, for vectors as they are.
        noise: of CapDec, the standard deviation of each component.
        through_memory: whether DeCap's embeddings get noise and are projected onto the bank (`ProjectedNoise`).
        epochs: passes over all captions.
        steps: to take in the place of whole epochs.
        batch_size: captions of a step, over all processes.
        tokens: that are learned of a caption, from its start on.
        start_token: whether captions begin with the start token, as published.
        width, layers, positions: sizes of the decoder.
        start_from: a decoder to train further.
        held_out: captions that are not learned, but scored after each epoch.
    """

    kind: DecoderKind = "decap"
    noise: float = 0.08
    through_memory: bool = False
    epochs: int = 10
    steps: int | None = None
    batch_size: int = 64
    rate: float = Optimization.rate
    warmup_steps: int = Optimization.warmup_steps
    weight_decay: float = Optimization.weight_decay
    label_smoothing: float = Optimization.label_smoothing
    clip_norm: float | None = Optimization.clip_norm
    precision: Precision = Optimization.precision
    tokens: int = 20
    start_token: bool = True
    width: int = DecoderSize.width
    layers: int = DecoderSize.layers
    positions: int = DecoderSize.positions
    dropout: float = DecoderSize.dropout
    start_from: Path | None = None
    held_out: int = 0
    seed: int = 0

    def fingerprint(self) -> str:
        """Return what tells this plan from any other, the contents of files included."""
        settings = asdict(self)
        settings["start_from"] = self.start_from and sha256_of(self.start_from)
        return hashlib.sha256(repr(sorted(settings.items())).encode()).hexdigest()

    def optimization(self, steps_per_epoch: int) -> Optimization:
        """Return the numbers of the optimizer."""
        return Optimization(
            self.steps or self.epochs * steps_per_epoch,
            self.rate,
            self.warmup_steps,
            self.weight_decay,
            self.label_smoothing,
            self.clip_norm,
            self.precision,
        )

    def check(self, processes: Processes) -> None:
        """Raise if a number is out of its range, or does not go with another.

        Raises:
            CheckpointError: names the option.
        """
        for range_ in _RANGES:
            range_.check(getattr(self, range_.option.replace("-", "_")))
        if self.width % PUBLISHED_HEADS:
            raise CheckpointError(f"--width: expected a multiple of {PUBLISHED_HEADS}, its heads, got {self.width}")
        if self.positions <= self.tokens:
            raise CheckpointError(f"--positions: expected more than --tokens, {self.tokens}, got {self.positions}")
        if self.batch_size < processes.count:
            raise CheckpointError(
                f"--batch-size: expected at least one caption for each of {processes.count} processes, got "
                f"{self.batch_size}"
            )
        if self.precision == "fp16" and processes.device.type == "cpu":
            raise CheckpointError("--precision fp16: is for GPUs; on a CPU expected fp32 or bf16")
        if self.through_memory and self.kind == "capdec":
            raise CheckpointError("--through-memory: CapDec has no memory bank; leave it out, or take --kind decap")

    def check_captions(self, captions: int) -> None:
        """Raise if there are fewer captions than a batch and what is held out take.

        Raises:
            CheckpointError: says how many there are.
        """
        if captions - self.held_out < self.batch_size:
            held_out = f" and {self.held_out:,} to hold out" if self.held_out else ""
            fewer = " or --held-out" if self.held_out else ""
            raise CheckpointError(
                f"expected at least {self.batch_size:,} captions to learn, those of a batch{held_out}, got "
                f"{captions:,}; take a smaller --batch-size{fewer}"
            )
