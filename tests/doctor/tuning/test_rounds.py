"""How times are measured: side by side, the shortest of each, within a budget."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from runtime.doctor.tuning.budget import Budget
from runtime.doctor.tuning.rounds import Runs, time_in_rounds
from tests.doctor.tuning.doubles import FakeClock


def run_of(clock: FakeClock, seconds: Sequence[float], started: list[float] | None = None) -> Callable[[], None]:
    """Return a run that takes the seconds in turn, then the last of them for ever."""
    durations = list(seconds)

    def run() -> None:
        if started is not None:
            started.append(clock.seconds)
        clock.seconds += durations.pop(0) if len(durations) > 1 else durations[0]

    return run


def test_a_budget_ends_when_its_seconds_are_over() -> None:
    clock = FakeClock(100.0)
    budget = Budget(10, clock)
    assert budget.allows(9.9)
    assert not budget.allows(10)
    clock.seconds = 104
    assert budget.allows(5.9)
    assert not budget.allows(6)
    clock.seconds = 110
    assert not budget.allows()


def test_the_part_of_a_budget_ends_at_its_share_of_the_whole() -> None:
    clock = FakeClock()
    budget = Budget(10, clock)
    clock.seconds = 2
    half = budget.until(0.5)
    assert half.allows(2.9)
    assert not half.allows(3)
    clock.seconds = 6
    assert not half.allows()
    assert not budget.until(0.5).allows()


def test_the_time_of_a_run_is_its_shortest_in_milliseconds() -> None:
    clock = FakeClock()
    runs: dict[str, Runs] = {"a": {"backbone": run_of(clock, [3, 1, 2]), 16: run_of(clock, [0.2, 0.3, 0.25])}}
    assert time_in_rounds(runs, Budget(1000, clock)) == {
        "a": {"backbone": pytest.approx(1000), 16: pytest.approx(200)},
    }
    assert clock.seconds == pytest.approx(6.75), "three rounds, which took more than three seconds"


def test_competitors_run_in_turn_for_three_seconds() -> None:
    clock, of_a, of_b = FakeClock(), list[float](), list[float]()
    runs: dict[str, Runs] = {"a": {1: run_of(clock, [0.25], of_a)}, "b": {1: run_of(clock, [0.25], of_b)}}
    time_in_rounds(runs, Budget(1000, clock))
    assert of_a == [0.5 * number for number in range(6)]
    assert of_b == [0.25 + 0.5 * number for number in range(6)]


def test_what_is_clearly_slower_is_left_after_two_rounds_but_not_the_first() -> None:
    clock, slow_first, fast, slow, near = FakeClock(), list[float](), list[float](), list[float](), list[float]()
    runs: dict[str, Runs] = {
        "first": {1: run_of(clock, [0.5], slow_first)},
        "fast": {1: run_of(clock, [0.125], fast)},
        "slow": {1: run_of(clock, [0.5, 0.375], slow)},
        "near": {1: run_of(clock, [0.25], near)},
    }
    times = time_in_rounds(runs, Budget(1000, clock))
    assert [len(started) for started in (slow_first, fast, slow, near)] == [3, 3, 2, 3]
    assert {name: of_run[1] for name, of_run in times.items()} == {"first": 500, "fast": 125, "slow": 375, "near": 250}


@pytest.mark.parametrize(("seconds", "rounds"), [(0, 1), (9, 1), (10.1, 2), (15.1, 3), (1000, 3)])
def test_no_round_is_begun_that_would_end_after_the_budget_but_one_always_is(seconds: float, rounds: int) -> None:
    clock, started = FakeClock(), list[float]()
    runs: dict[str, Runs] = {"a": {1: run_of(clock, [2], started)}, "b": {1: run_of(clock, [3])}}
    time_in_rounds(runs, Budget(seconds, clock))
    assert len(started) == rounds


def test_none_is_left_within_a_second() -> None:
    clock, slow = FakeClock(), list[float]()
    runs: dict[str, Runs] = {"a": {1: run_of(clock, [0.01])}, "b": {1: run_of(clock, [0.09], slow)}}
    time_in_rounds(runs, Budget(1000, clock))
    assert len(slow) in (10, 11), "ten rounds of 0.1 s, and one more if they add up to a little less than a second"


def test_nothing_takes_no_time() -> None:
    nothing: dict[str, Runs] = {}
    clock = FakeClock()
    budget = Budget(0, clock)
    assert time_in_rounds(nothing, budget) == {}
