"""The whole of tuning, on backends that take known times."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
from torch import Tensor

from runtime import BackendError
from runtime.bundle import Bundle
from runtime.doctor.tuning import Budget, Tuning, combinations, draw_picture, projection, rounds, tune
from runtime.doctor.tuning.combinations import Combination
from runtime.doctor.tuning.projection import KernelRow
from runtime.doctor.tuning.rounds import Runs, Stage
from runtime.memory import kernel_names
from tests.doctor.tuning.doubles import FakeClock, FakeEngine, FakeMachine
from tests.doubles import with_manifest

SPEEDS = {
    ("cpu", "fp32", None): {"backbone": 0.5, "decoder": 0.01},
    ("cpu", "fp32", 1): {"backbone": 0.3, "decoder": 0.01},
    ("openvino", "fp32", None): {"backbone": 0.45, "decoder": 0.02},
    ("openvino", "bf16", None): {"backbone": 0.1, "decoder": 0.01},
    ("openvino", "bf16", 1): {"backbone": 0.2, "decoder": 0.01},
}
STEPS = 12


@pytest.fixture
def bundle(demo_bundle: Path) -> Bundle:
    return Bundle(demo_bundle, verify=False)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> FakeMachine:
    """A machine of two cores with the combinations of `SPEEDS`."""
    machine = FakeMachine(FakeClock(), SPEEDS)
    monkeypatch.setattr(combinations, "open_backend", machine.open_backend)
    monkeypatch.setattr(combinations, "usable_cores", lambda: 2)
    monkeypatch.setattr(projection, "time_in_rounds", run_once)
    return machine


def run_once(runs: Mapping[str, Runs], _: Budget) -> dict[str, dict[Stage, float]]:
    """Run the kernels, whose time no clock of a test knows."""
    for of_kernels in runs.values():
        for run in of_kernels.values():
            run()
    return {name: dict.fromkeys(of_kernels, 1.0) for name, of_kernels in runs.items()}


def tuned(
    machine: FakeMachine, *bundles: Bundle, seconds: float = 1000.0, min_agreement: float = 0.99
) -> tuple[Tuning, list[str]]:
    said: list[str] = []
    named = {f"b{number}": bundle for number, bundle in enumerate(bundles)}
    images = [draw_picture(0), draw_picture(1)]
    tuning = tune(named, images, ("fp32", "bf16"), min_agreement, Budget(seconds, machine.clock), said.append)
    assert machine.num_open == 0, "engines were left open"
    return tuning, said


def row(backbone: float, step: float) -> tuple[object, ...]:
    """Return the milliseconds of a row: the backbone, and twice as many steps of the decoder."""
    return tuple(pytest.approx(1e3 * one) for one in (backbone, STEPS * step, STEPS * step, backbone + 24 * step))


def test_every_combination_is_a_row_by_its_shortest_runs(machine: FakeMachine, bundle: Bundle) -> None:
    tuning, _ = tuned(machine, bundle)
    found = {
        (one.combination.backend, one.combination.precision, one.combination.threads): (
            one.backbone_ms,
            one.decoding_ms[1],
            one.decoding_ms[16],
            one.milliseconds,
        )
        for one in tuning.rows
    }
    assert found == {
        ("cpu", "fp32", None): row(0.5, 0.01),
        ("openvino", "fp32", None): row(0.45, 0.02),
        ("openvino", "bf16", None): row(0.1, 0.01),
        ("openvino", "bf16", 1): row(0.2, 0.01),
    }, "of those that are slow anyway, fewer threads are not tried"
    assert (tuning.images, tuning.captions, tuning.left_out) == (2, 118, ())
    assert tuning.chosen.combination == Combination("b0", "openvino", "bf16")
    assert tuning.speedup(tuning.chosen) == pytest.approx(0.74 / 0.34)
    assert [one.quality.agreement for one in tuning.rows] == [1, 1, 1, 1]
    assert [one.quality.cosine == pytest.approx(1, abs=1e-6) for one in tuning.rows] == [True, True, False, False]


def test_what_changes_captions_is_not_chosen_however_fast(machine: FakeMachine, bundle: Bundle) -> None:
    machine.words = {"bf16": 6}
    tuning, _ = tuned(machine, bundle)
    assert [one.quality.agreement for one in tuning.rows] == [1, 1, 1, 0]
    assert tuning.chosen.combination == Combination("b0", "cpu", "fp32", 1)
    assert tuning.measurement("b0", bundle).kernels == tuning.kernels_of("b0")
    kept = tuning.measurement("b0", bundle)
    assert [(run.backend, run.threads) for run in kept.agreeing()] == [("cpu", None), ("cpu", 1), ("openvino", None)]
    assert kept.has_tried("bf16")
    assert tuned(machine, bundle, min_agreement=0.0)[0].chosen.combination.precision == "bf16"


def test_the_budget_ends_it_after_each_was_measured_once(machine: FakeMachine, bundle: Bundle) -> None:
    tuning, _ = tuned(machine, bundle, seconds=1)
    assert [one.combination.backend for one in tuning.rows] == ["cpu"], "opening it alone took longer"
    assert (tuning.images, tuning.chosen.combination) == (1, Combination("b0", "cpu", "fp32"))
    assert tuning.left_out == tuple(
        f"b0 on {rest}: no time was left; give it more by --seconds"
        for rest in ("openvino in fp32", "openvino in bf16", "cpu in fp32 with 1 thread")
    )


@pytest.mark.parametrize("seconds", [30, 60, 120])
def test_no_run_is_begun_after_the_budget_but_the_first_of_each(
    machine: FakeMachine, bundle: Bundle, monkeypatch: pytest.MonkeyPatch, seconds: float
) -> None:
    monkeypatch.setattr(rounds, "_SECONDS", 1e9)
    tuned(machine, bundle, seconds=seconds)
    longest_image = 3 * (0.5 + 31 * 0.02)
    assert seconds / 2 < machine.clock.seconds < seconds + longest_image, "it is used, and not exceeded"


def test_several_bundles_are_compared_with_the_one_in_float32(machine: FakeMachine, bundle: Bundle) -> None:
    engines = {
        name: record.model_copy(update={"precision": "int8"}) for name, record in bundle.manifest.engines.items()
    }
    tuning, said = tuned(machine, with_manifest(bundle, engines=engines), bundle)
    assert (tuning.rows[0].combination.bundle, tuning.rows[0].graphs) == ("b1", "fp32")
    assert {(one.combination.bundle, one.graphs) for one in tuning.rows} == {("b0", "int8"), ("b1", "fp32")}
    assert len(tuning.measurement("b0", bundle).runs) == len(tuning.measurement("b1", bundle).runs) == 4
    assert said[-2:] == [f"timing the projection's kernels for b{number}" for number in range(2)]


@pytest.mark.parametrize("broken", [{"openvino"}, {"cpu", "openvino"}])
def test_what_cannot_run_the_engines_is_left_out(
    machine: FakeMachine, bundle: Bundle, monkeypatch: pytest.MonkeyPatch, broken: set[str]
) -> None:
    run_engine = FakeEngine.run

    def refuse(engine: FakeEngine, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        if engine.backend.name in broken and engine.graph == "decoder":
            raise BackendError("no such operator")
        return run_engine(engine, inputs)

    monkeypatch.setattr(FakeEngine, "run", refuse)
    if "cpu" in broken:
        with pytest.raises(BackendError, match="no backend can be used: b0 on cpu in fp32: no such operator; b0 on"):
            tuned(machine, bundle)
        assert machine.num_open == 0
    else:
        tuning, _ = tuned(machine, bundle)
        assert {one.combination.backend for one in tuning.rows} == {"cpu"}
        assert tuning.left_out == tuple(f"b0 on openvino in {one}: no such operator" for one in ("fp32", "bf16"))


def test_all_kernels_are_timed_with_region_vectors(machine: FakeMachine, bundle: Bundle) -> None:
    tuning, _ = tuned(machine, bundle)
    assert [one.kernels for one in tuning.kernels] == list(kernel_names(machine.backends[0].device))
    assert all(one.bundle == "b0" and set(one.projection_ms) == {1, 16} for one in tuning.kernels)


@pytest.mark.parametrize(
    ("milliseconds", "expected"),
    [((1.0, 0.9, 5.0), None), ((1.0, 0.8, 0.5), "torch"), ((1.0, 0.5, 0.5), "avx2"), ((), None)],
)
def test_kernels_are_kept_where_others_than_the_usual_are_clearly_faster(
    milliseconds: tuple[float, ...], expected: str | None
) -> None:
    names = ("avx512", "avx2", "torch")
    rows = [KernelRow("b", name, {1: ms / 2, 16: ms / 2}) for name, ms in zip(names, milliseconds, strict=False)]
    others = [KernelRow("c", "avx512", {1: 9.0, 16: 9.0}), KernelRow("c", "avx2", {1: 1.0, 16: 1.0})]
    tuning = Tuning((), (*rows, *others), (), 0, 0, 0.99)
    assert tuning.kernels_of("b") == expected
    assert tuning.kernels_of("c") == "avx2"
