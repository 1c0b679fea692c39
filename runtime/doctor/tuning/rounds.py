"""Times several things side by side: each once in every round, so that what else the machine does meets all of them."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from typing import Literal, TypeAlias, TypeVar

from runtime.doctor.tuning.budget import Budget

Stage: TypeAlias = "Literal['backbone'] | int"
"""A part that is timed: the backbone, or what is done with so many regions at once."""
Runs: TypeAlias = Mapping[Stage, Callable[[], object]]
"""What is timed of one competitor, by stage."""
Times: TypeAlias = dict[Stage, float]
"""The shortest run of each stage in milliseconds."""

_SECONDS = 3.0
_MIN_ROUNDS, _MAX_ROUNDS = 3, 200
_ROUNDS_TO_JUDGE, _SECONDS_TO_JUDGE = 2, 1.0
_CLEARLY_SLOWER = 2.0

K = TypeVar("K", bound=Hashable)


def time_in_rounds(competitors: Mapping[K, Runs], budget: Budget) -> dict[K, Times]:
    """Return the shortest time of each run, in a few seconds or as many as the budget has, and in one round at least.

    One that is clearly slower than the fastest is left after two rounds and a second. The first stays: it is what
    others are compared with.
    """
    best = {key: {stage: float("inf") for stage in runs} for key, runs in competitors.items()}
    racing, rounds, start = list(competitors), 0, budget.clock()
    while rounds < _MIN_ROUNDS or (rounds < _MAX_ROUNDS and budget.clock() - start < _SECONDS):
        expected_ms = sum(sum(best[key].values()) for key in racing)
        if rounds and not budget.allows(expected_ms / 1e3):
            break
        for key in racing:
            for stage, run in competitors[key].items():
                best[key][stage] = min(best[key][stage], _milliseconds(run, budget))
        rounds += 1
        if rounds >= _ROUNDS_TO_JUDGE and budget.clock() - start >= _SECONDS_TO_JUDGE:
            racing = _without_slow(racing, best)
    return best


def _milliseconds(run: Callable[[], object], budget: Budget) -> float:
    before = budget.clock()
    run()
    return (budget.clock() - before) * 1e3


def _without_slow(racing: list[K], best: Mapping[K, Times]) -> list[K]:
    totals = {key: sum(best[key].values()) for key in racing}
    least = min(totals.values(), default=0.0)
    return [key for key in racing if key == racing[0] or totals[key] <= _CLEARLY_SLOWER * least]
