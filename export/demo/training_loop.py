"""Optimizer steps and progress reports, as both trainings of the demo make them."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

_WARMUP_STEPS = 100
_MAX_GRADIENT_NORM = 1.0
_STEPS_BETWEEN_REPORTS = 100


class TrainingLog(Protocol):
    """The training log: called with the fields of one entry."""

    def __call__(self, **entry: Any) -> None: ...


class ScheduledOptimizers:
    """Optimizers with linear warm-up and cosine decay of their learning rates, and gradients clipped by norm."""

    def __init__(self, optimizers: Sequence[torch.optim.Optimizer], steps: int) -> None:
        self._optimizers = optimizers
        self._schedules = [warmup_cosine(optimizer, _WARMUP_STEPS, steps) for optimizer in optimizers]

    def step(self, loss: Tensor, clipped: Iterable[nn.Parameter]) -> None:
        """Take one step down the loss; the gradients of ``clipped`` are clipped together."""
        for optimizer in self._optimizers:
            optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(clipped, _MAX_GRADIENT_NORM)
        for optimizer, schedule in zip(self._optimizers, self._schedules, strict=True):
            optimizer.step()
            schedule.step()


def warmup_cosine(optimizer: torch.optim.Optimizer, warmup_steps: int, steps: int) -> torch.optim.lr_scheduler.LambdaLR:
    """Return a schedule of linear warm-up and cosine decay to zero."""

    def factor(step: int) -> float:
        return min((step + 1) / warmup_steps, 0.5 + 0.5 * math.cos(math.pi * step / steps))

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


class StepReport:
    """Means of the steps' metrics, logged every 100 steps and after the last one."""

    def __init__(self, part: str, steps: int, log: TrainingLog) -> None:
        self._part, self._steps, self._log = part, steps, log
        self._started, self._step = time.monotonic(), 0
        self._values: dict[str, list[float]] = {}

    def add(self, metrics: dict[str, Tensor], **latest: Tensor) -> None:
        """Add a step's metrics; ``latest`` are logged as they are, not as means."""
        for name, value in metrics.items():
            self._values.setdefault(name, []).append(value.item())
        self._step += 1
        if self._step % _STEPS_BETWEEN_REPORTS == 0 or self._step == self._steps:
            seconds = round(time.monotonic() - self._started)
            current = {name: value.item() for name, value in latest.items()}
            means = {name: round(float(np.mean(values)), 4) for name, values in self._values.items()}
            self._log(part=self._part, step=self._step, seconds=seconds, **current, **means)
            self._values = {}
