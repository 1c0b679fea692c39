"""Measures what a machine gives: every combination of backend and precision, then fewer threads, then the kernels."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from torch import Tensor

from runtime.bundle import Bundle
from runtime.doctor.tuning.budget import Budget
from runtime.doctor.tuning.combinations import Combination, check_comparable, find_combinations
from runtime.doctor.tuning.opened import BATCH_SIZES, OpenCombinations
from runtime.doctor.tuning.projection import KernelRow, time_kernels
from runtime.doctor.tuning.quality import Quality, compare
from runtime.doctor.tuning.result import TunedRow, Tuning
from runtime.doctor.tuning.rounds import Times, time_in_rounds
from runtime.errors import BackendError
from runtime.image import ImageSource
from runtime.options import Precision

_TIMED, _COMPARED, _THREADS = 0.45, 0.75, 0.95
"""The share of the time that is over when each step ends."""
_WORTH_THREADS = 1.3
"""Combinations that take so much longer than the fastest one will not be faster with fewer threads."""

Say = Callable[[str], None]


def tune(
    bundles: Mapping[str, Bundle],
    images: Sequence[ImageSource],
    precisions: Sequence[Precision],
    min_agreement: float,
    budget: Budget,
    say: Say,
) -> Tuning:
    """Measure all that can be combined for a bundle, or for bundles of one checkpoint in several precisions.

    Args:
        bundles: by the names that the user has for them.
        images: what captions are compared on.
        min_agreement: the share of captions that must stay those of float32, in 0..1.
        say: takes a line on what is done next.

    Raises:
        OptionError: the bundles are not of one checkpoint.
        BackendError: none can be used.
        ImageError: an image cannot be read.
    """
    check_comparable(bundles)
    combinations, left_out = find_combinations(bundles, precisions)
    with OpenCombinations(bundles) as opened:
        start = budget.clock()
        left_out += _open(opened, combinations, budget, say)
        seconds_to_open = (budget.clock() - start) / len(combinations)
        say(f"timing {len(opened.runs)} combinations of backend and precision")
        times = time_in_rounds(opened.runs, budget.until(_TIMED))
        comparison = compare(opened.captioners, images, budget.until(_COMPARED), say)
        contenders = _contenders(times, comparison.qualities, min_agreement)
        opened.close_others(contenders)
        fewer = [one for contender in contenders for one in contender.with_fewer_threads()]
        left_out += _open(opened, fewer, budget.until(_THREADS), say, seconds_to_open)
        if len(opened.runs) > len(contenders):
            say(f"timing {len(opened.runs) - len(contenders)} of them with fewer threads")
            _take_shorter(times, time_in_rounds(opened.runs, budget.until(_THREADS)))
        opened.close_others(())
        kernels = _time_kernels(bundles, opened, comparison.vectors, budget, say)
    rows = _rows(combinations, bundles, times, comparison.qualities)
    return Tuning(rows, tuple(kernels), tuple(left_out), comparison.images, comparison.captions, min_agreement)


def _open(
    opened: OpenCombinations, combinations: Iterable[Combination], budget: Budget, say: Say, last_seconds: float = 0.0
) -> list[str]:
    """Open combinations while there is time for it, and to run them once more; return why some are not.

    Args:
        last_seconds: what opening another one took before.

    Raises:
        BackendError: none is open then.
    """
    left_out = []
    for combination in combinations:
        if opened.runs and not budget.allows(2 * last_seconds):
            left_out.append(f"{combination}: no time was left; give it more by --seconds")
            continue
        say(f"opening {combination}")
        start = budget.clock()
        try:
            opened.open(combination)
        except BackendError as error:
            left_out.append(f"{combination}: {error}")
        last_seconds = budget.clock() - start
    if not opened.runs:
        raise BackendError("no backend can be used: " + "; ".join(left_out))
    return left_out


def _contenders(
    times: Mapping[Combination, Times], qualities: Mapping[Combination, Quality], min_agreement: float
) -> list[Combination]:
    """Return the combinations that may be the fastest, with fewer threads if not so."""
    totals = {key: sum(times[key].values()) for key in times if qualities[key].agreement >= min_agreement}
    least = min(totals.values())
    return [key for key, total in totals.items() if total <= _WORTH_THREADS * least]


def _take_shorter(times: dict[Combination, Times], others: Mapping[Combination, Times]) -> None:
    for key, of_stages in others.items():
        before = times.get(key, of_stages)
        times[key] = {stage: min(before[stage], ms) for stage, ms in of_stages.items()}


def _time_kernels(
    bundles: Mapping[str, Bundle], opened: OpenCombinations, vectors: Tensor, budget: Budget, say: Say
) -> list[KernelRow]:
    """Time the kernels of each bundle that projects onto a memory bank on the CPU."""
    rows: list[KernelRow] = []
    for label in bundles:
        bank = opened.bank(label, vectors.device)
        if bank is not None and bank.config.projects and vectors.device.type == "cpu":
            say(f"timing the projection's kernels for {label}")
            rows += time_kernels(label, bank, vectors, budget)
    return rows


def _rows(
    combinations: Iterable[Combination],
    bundles: Mapping[str, Bundle],
    times: Mapping[Combination, Times],
    qualities: Mapping[Combination, Quality],
) -> tuple[TunedRow, ...]:
    """Return the rows, those with fewer threads below the one whose captions they have."""
    return tuple(
        TunedRow(
            one,
            bundles[one.bundle].manifest.engines["backbone"].precision,
            times[one]["backbone"],
            {count: times[one][count] for count in BATCH_SIZES},
            qualities[combination],
        )
        for combination in combinations
        for one in (combination, *combination.with_fewer_threads())
        if one in times
    )
