"""The learning rate over the steps of a training: linear warm-up, then linear decay to zero."""

from __future__ import annotations


def rate_factor(step: int, warmup_steps: int, steps: int) -> float:
    """Return what the learning rate is multiplied with in a step, from 0; the very first step has 0, as published."""
    if step < warmup_steps:
        return step / warmup_steps
    return max(0.0, (steps - step) / max(1, steps - warmup_steps))
