"""What is tried: backends, precisions and threads that there are, on bundles that can be compared."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from runtime import BackendError, OptionError
from runtime.bundle import Bundle
from runtime.doctor.tuning import combinations
from runtime.doctor.tuning.combinations import Combination, candidates, check_comparable, find_combinations
from tests.doctor.tuning.doubles import FakeClock, FakeMachine
from tests.doubles import with_manifest

SPEED = {"backbone": 1.0, "decoder": 1.0}


@pytest.fixture
def bundle(demo_bundle: Path) -> Bundle:
    return Bundle(demo_bundle, verify=False)


def with_graphs(bundle: Bundle, precision: str) -> Bundle:
    """Return a bundle whose graphs say that they are in another precision."""
    engines = {
        name: record.model_copy(update={"precision": precision}) for name, record in bundle.manifest.engines.items()
    }
    return with_manifest(bundle, engines=engines)


@pytest.mark.parametrize(("cores", "threads"), [(1, []), (2, [1]), (3, [1]), (4, [2, 1]), (12, [6, 1])])
def test_fewer_threads_are_half_of_the_cores_and_one(
    monkeypatch: pytest.MonkeyPatch, cores: int, threads: list[int]
) -> None:
    monkeypatch.setattr(combinations, "usable_cores", lambda: cores)
    assert [one.threads for one in Combination("b", "cpu", "fp32").with_fewer_threads()] == threads
    assert Combination("b", "tensorrt", "fp32").with_fewer_threads() == []


def test_a_combination_says_what_it_is() -> None:
    assert str(Combination("b", "openvino", "bf16")) == "b on openvino in bf16"
    assert str(Combination("b", "cpu", "fp32", 1)) == "b on cpu in fp32 with 1 thread"
    assert str(Combination("b", "cpu", "fp32", 8)) == "b on cpu in fp32 with 8 threads"


def test_all_that_can_be_opened_is_found_the_default_first(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = FakeMachine(
        FakeClock(),
        dict.fromkeys([("cpu", "fp32", None), ("openvino", "fp32", None), ("openvino", "bf16", None)], SPEED),
    )
    monkeypatch.setattr(combinations, "open_backend", machine.open_backend)
    assert candidates(bundle) == ["cpu", "openvino"]
    assert find_combinations({"b": bundle}, ("fp32", "bf16")) == (
        [Combination("b", "cpu", "fp32"), Combination("b", "openvino", "fp32"), Combination("b", "openvino", "bf16")],
        [],
    )
    usable, refused = find_combinations({"b8": with_graphs(bundle, "int8"), "b": bundle}, ("fp32",))
    assert [one.bundle for one in usable] == ["b", "b", "b8", "b8"], "what is in float32 is compared with"
    assert refused == []


def test_what_cannot_be_opened_is_left_out_with_the_reason(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    usable, refused = find_combinations({"b": bundle}, ("fp32", "bf16"))
    assert usable == [Combination("b", "cpu", "fp32")]
    (reason,) = refused
    assert reason.startswith("OpenVINO cannot be imported")
    with pytest.raises(BackendError, match="no backend can be used: OpenVINO cannot be imported"):
        find_combinations({"b": bundle}, ("bf16",))


def changed(bundle: Bundle, part: str, **values: Any) -> Bundle:
    return with_manifest(bundle, **{part: getattr(bundle.manifest, part).model_copy(update=values)})


def test_bundles_of_one_checkpoint_can_be_compared(bundle: Bundle) -> None:
    check_comparable({"b": bundle})
    check_comparable(
        {"b": bundle, "b8": with_graphs(bundle, "int8"), "later": changed(bundle, "build", built_at="now")}
    )


@pytest.mark.parametrize(
    ("part", "values", "expected"),
    [
        ("backbone", {"name": "other"}, "its backbone is other at 224 px, and that of b .* at 224 px"),
        ("decoder", {"num_layers": 9}, "its decoder is decap, 9 layers of width .*, and that of b decap, "),
        ("build", {"checkpoint": "other"}, "its checkpoint is other, and that of b demo"),
    ],
)
def test_others_are_refused(bundle: Bundle, part: str, values: dict[str, Any], expected: str) -> None:
    with pytest.raises(OptionError, match=f"^c: {expected}.*; only bundles of one checkpoint in several precisions"):
        check_comparable({"b": bundle, "c": changed(bundle, part, **values)})


def test_a_bundle_without_memory_is_not_compared_with_one_that_has_it(bundle: Bundle) -> None:
    with pytest.raises(OptionError, match="c: its memory is none, and that of b .* captions"):
        check_comparable({"b": bundle, "c": with_manifest(bundle, memory=None)})
