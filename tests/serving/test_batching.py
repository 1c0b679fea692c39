"""One captioner for many callers: threads that share it, regions decoded in one batch, asyncio."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from threading import Barrier, Event
from threading import enumerate as threads_alive
from typing import Any

import pytest
import torch
from torch import Tensor

from runtime import (
    Box,
    BundleError,
    Caption,
    Captioner,
    FeatureMap,
    OptionError,
    PatchcaptionError,
    Point,
    Region,
    RegionError,
    WholeImage,
)
from runtime.backends.onnxruntime_gpu import CPU, OrtGpuBackend
from runtime.bundle import Bundle
from runtime.features import RegionVectors
from runtime.options import DecodingOptions, DescribeKeywords
from runtime.serving.batching import Batching
from tests.doubles import captioner_of

PIXELS = torch.randint(0, 256, (3, 240, 320), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
REGIONS: list[list[Region]] = [
    [Box(10 * index, 8 * index, 10 * index + 90, 8 * index + 70), Point(20 * index, 15 * index)] for index in range(8)
]
LONG_MS = 60_000.0
"""A wait longer than any test: an answer that comes sooner came because its batch was full."""


@pytest.fixture(scope="module")
def features(demo: Captioner) -> FeatureMap:
    return demo.encode(PIXELS)


def texts(captions: list[Caption]) -> list[str]:
    return [caption.text for caption in captions]


def call_at_once(calls: Sequence[Callable[[], Any]]) -> list[Any]:
    """Return the results of calls that begin in as many threads at the same time."""
    barrier = Barrier(len(calls))

    def begin(call: Callable[[], Any]) -> Any:
        barrier.wait()
        return call()

    with ThreadPoolExecutor(len(calls)) as threads:
        return list(threads.map(begin, calls))


@pytest.fixture(scope="module", params=["cpu", "openvino", "bound memory"])
def shared(request: pytest.FixtureRequest, demo_bundle: Path) -> Iterator[Captioner]:
    """A captioner of each kind of engine; those of GPUs are bound to memory."""
    if request.param == "bound memory":
        captioner = captioner_of(Bundle(demo_bundle), OrtGpuBackend(CPU, torch.device("cpu")))
    else:
        captioner = Captioner.load(demo_bundle, str(request.param))
    with captioner:
        yield captioner


@pytest.mark.slow
def test_eight_threads_get_the_captions_of_one(shared: Captioner) -> None:
    def describe_all(index: int) -> list[list[str]]:
        image = PIXELS.roll(17 * index, dims=2)
        odd: list[DescribeKeywords] = [{}, {"n_best": 2}, {"reencode": "mean"}, {"beams": 2}]
        even: list[DescribeKeywords] = [{}, {"clean": "orthogonal"}]
        regions = REGIONS[index][:1]
        return [texts(shared.caption(image, regions, **options)) for options in (odd if index % 2 else even)]

    expected = [describe_all(index) for index in range(8)]
    for _ in range(3):
        assert call_at_once([partial(describe_all, index) for index in range(8)]) == expected


def test_requests_that_arrive_together_are_decoded_together(
    demo: Captioner, features: FeatureMap, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = [texts(demo.describe(features, regions)) for regions in REGIONS]
    batches: list[int] = []
    describe_vectors = demo.pipeline.describe_vectors

    def recording(vectors: RegionVectors, options: DecodingOptions) -> list[Caption]:
        batches.append(len(vectors))
        return describe_vectors(vectors, options)

    monkeypatch.setattr(demo.pipeline, "describe_vectors", recording)
    with demo.batching(max_wait_ms=LONG_MS, max_regions=16) as batching:

        def described(regions: list[Region]) -> list[str]:
            return texts(batching.describe(features, regions))

        assert call_at_once([partial(described, regions) for regions in REGIONS]) == expected
    assert batches == [16]


def test_a_batch_has_at_most_so_many_regions_and_a_larger_call_is_one_of_its_own(
    demo: Captioner, features: FeatureMap, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches: list[int] = []

    def recording(vectors: RegionVectors, _: DecodingOptions) -> list[Caption]:
        batches.append(len(vectors))
        return [Caption("", 1.0, ())] * len(vectors)

    monkeypatch.setattr(demo.pipeline, "describe_vectors", recording)
    with demo.batching(max_wait_ms=LONG_MS, max_regions=4) as batching:
        call_at_once([partial(batching.describe, features, regions) for regions in REGIONS])
        assert batches == [4] * 4
        assert len(batching.describe(features, [*REGIONS[0], *REGIONS[1], *REGIONS[2]])) == 6
    assert batches == [4, 4, 4, 4, 6]


def test_a_single_call_waits_no_longer_than_it_was_told_to(demo: Captioner, features: FeatureMap) -> None:
    with demo.batching(max_wait_ms=1, max_regions=1000) as batching:
        assert texts(batching.describe(features, REGIONS[0])) == texts(demo.describe(features, REGIONS[0]))
        assert batching.describe(features, []) == []
        nested = batching.caption([PIXELS, PIXELS], [REGIONS[0], REGIONS[1]])
    assert [texts(one) for one in nested] == [texts(demo.describe(features, own)) for own in REGIONS[:2]]


def test_calls_of_other_options_are_batches_of_their_own(demo: Captioner, features: FeatureMap) -> None:
    kinds: list[DescribeKeywords] = [{}, {"beams": 2}, {"n_best": 1}, {"mode": "nearest"}, {"clean": "orthogonal"}]
    expected = [demo.describe(features, REGIONS[0], **options) for options in kinds]
    with demo.batching(max_wait_ms=5) as batching:

        def describe(options: DescribeKeywords) -> list[Caption]:
            return batching.describe(features, REGIONS[0], **options)

        found = call_at_once([partial(describe, options) for options in kinds])
    assert [texts(captions) for captions in found] == [texts(captions) for captions in expected]
    assert [captions[0].nearest for captions in found] == [captions[0].nearest for captions in expected]
    assert [[caption.region for caption in captions] for captions in found] == [REGIONS[0]] * len(kinds)


def test_one_callers_mistake_does_not_affect_others(
    demo: Captioner, features: FeatureMap, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A region outside the image, an option that does not exist, and vectors that break in the middle of a batch."""
    describe_vectors, poison = demo.pipeline.describe_vectors, 7.0

    def breaking(vectors: RegionVectors, options: DecodingOptions) -> list[Caption]:
        if (vectors.data == poison).all(dim=1).any():
            raise BundleError("broken in the middle")
        return describe_vectors(vectors, options)

    expected = texts(demo.describe(features, REGIONS[0]))
    monkeypatch.setattr(demo.pipeline, "describe_vectors", breaking)
    poisoned = replace(features, tokens=torch.full_like(features.tokens, poison))
    with demo.batching(max_wait_ms=LONG_MS, max_regions=7) as batching:

        def texts_or_error(call: Callable[[], Any]) -> Any:
            try:
                return texts(call())
            except PatchcaptionError as error:
                return type(error)

        calls: list[Callable[[], Any]] = [
            lambda: batching.describe(features, REGIONS[0]),
            lambda: batching.describe(poisoned, [WholeImage()]),
            lambda: batching.describe(features, [Box(900, 900, 950, 950)]),
            lambda: batching.describe(features, REGIONS[0], beems=3),  # type: ignore[call-overload]
            lambda: batching.describe(features, REGIONS[0]),
            lambda: batching.describe(features, REGIONS[0]),
        ]
        found = call_at_once([partial(texts_or_error, call) for call in calls])
    assert found == [expected, BundleError, RegionError, OptionError, expected, expected]


def test_a_timeout_gives_up_and_does_not_affect_others(
    demo: Captioner, features: FeatureMap, monkeypatch: pytest.MonkeyPatch
) -> None:
    describe_vectors, may_go, began = demo.pipeline.describe_vectors, Event(), Event()
    batches: list[Tensor] = []

    def waiting(vectors: RegionVectors, options: DecodingOptions) -> list[Caption]:
        batches.append(vectors.data)
        began.set()
        may_go.wait()
        return describe_vectors(vectors, options)

    expected = texts(demo.describe(features, REGIONS[1]))
    monkeypatch.setattr(demo.pipeline, "describe_vectors", waiting)
    with demo.batching(max_wait_ms=0) as batching, ThreadPoolExecutor(1) as other:
        first = other.submit(batching.describe, features, REGIONS[1])
        began.wait()
        with pytest.raises(TimeoutError, match="no captions after 0.01 s; others of the batch get theirs"):
            batching.describe(features, REGIONS[0], timeout_s=0.01)
        may_go.set()
        assert texts(first.result()) == expected
    assert len(batches) == 1, "what was given up is not decoded"
    torch.testing.assert_close(batches[0], demo.vectors(features, REGIONS[1]))


def test_a_closed_batching_has_answered_all_and_takes_no_more(demo: Captioner, features: FeatureMap) -> None:
    before = set(threads_alive())
    batching = demo.batching(max_wait_ms=LONG_MS)
    with ThreadPoolExecutor(1) as other:
        waiting = other.submit(batching.describe, features, REGIONS[0])
        while not batching._worker._waiting:
            pass
        batching.close()
        assert texts(waiting.result()) == texts(demo.describe(features, REGIONS[0]))
    with pytest.raises(PatchcaptionError, match="this batching was closed; make another with Captioner.batching"):
        batching.describe(features, REGIONS[0])
    batching.close()
    assert set(threads_alive()) <= before, "its thread is still alive"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_wait_ms": -1}, "max_wait_ms: .* got -1"),
        ({"max_wait_ms": float("inf")}, "max_wait_ms: expected a number from 0 to 3600000, got inf"),
        ({"max_wait_ms": float("nan")}, "max_wait_ms: expected a number from 0 to 3600000, got nan"),
        ({"max_wait_ms": "4"}, "max_wait_ms: expected a number from 0 to 3600000, got '4'"),
        ({"max_regions": 0}, "max_regions: .* got 0"),
        ({"max_regions": 2.5}, "max_regions: expected a whole number from 1 on, got 2.5"),
        ({"max_regions": float("nan")}, "max_regions: expected a whole number from 1 on, got nan"),
    ],
)
def test_limits_that_make_no_sense_are_refused(demo: Captioner, options: dict[str, Any], message: str) -> None:
    with pytest.raises(PatchcaptionError, match=message):
        demo.batching(**options)


@pytest.mark.parametrize("timeout_s", [-1, float("nan"), "1"])
def test_times_that_make_no_sense_are_refused(demo: Captioner, features: FeatureMap, timeout_s: Any) -> None:
    with demo.batching() as batching, pytest.raises(PatchcaptionError, match="timeout_s: expected"):
        batching.describe(features, REGIONS[0], timeout_s)


def test_a_caller_may_wait_for_ever(demo: Captioner, features: FeatureMap) -> None:
    with demo.batching(max_wait_ms=0) as batching:
        assert len(batching.describe(features, REGIONS[0], float("inf"))) == 2


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt, GeneratorExit, asyncio.CancelledError, StopIteration])
def test_an_error_of_any_class_is_answered_and_the_next_call_too(
    demo: Captioner, features: FeatureMap, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    def failing(_: RegionVectors, __: DecodingOptions) -> list[Caption]:
        raise error

    with demo.batching(max_wait_ms=0) as batching:
        with monkeypatch.context() as patch:
            patch.setattr(demo.pipeline, "describe_vectors", failing)
            with pytest.raises((error, RuntimeError)):
                batching.describe(features, REGIONS[0], 60)
        assert len(batching.describe(features, REGIONS[0], 60)) == 2


def test_a_thread_that_dies_answers_all_who_wait_and_come(
    demo: Captioner, features: FeatureMap, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dying(self: Any) -> Any:
        while len(self._waiting) < 2:
            pass
        raise OverflowError("timestamp too large")

    monkeypatch.setattr("runtime.serving.batching._BatchWorker._next_batch", dying)
    batching = demo.batching()

    def error_of_a_call() -> BaseException | None:
        with pytest.raises(OverflowError) as raised:
            batching.describe(features, REGIONS[0], 60)
        return raised.value

    assert {str(error) for error in call_at_once([error_of_a_call] * 2)} == {"timestamp too large"}
    with pytest.raises(PatchcaptionError, match="the thread of this batching has ended: OverflowError"):
        batching.describe(features, REGIONS[0], 60)
    batching.close()


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt, asyncio.CancelledError])
def test_a_callback_that_raises_is_no_matter_of_other_callers(
    demo: Captioner, features: FeatureMap, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    reported = list[Any]()
    monkeypatch.setattr("threading.excepthook", lambda args: reported.append(args.exc_type))

    def fail(_: Future[list[Caption]]) -> None:
        raise error

    with demo.batching(max_wait_ms=LONG_MS, max_regions=4) as batching:
        answers = []
        with batching._worker._changed:  # neither is answered before it has its callback
            for regions in REGIONS[:2]:
                answers.append(batching.submit(features, regions))
                answers[-1].add_done_callback(fail)
        assert [len(answer.result(60)) for answer in answers] == [2, 2]
        assert len(batching.describe(features, [*REGIONS[0], *REGIONS[1]], 60)) == 4
    assert reported == [error, error]


def test_a_callback_may_close_its_batching_and_cannot_wait_in_it(demo: Captioner, features: FeatureMap) -> None:
    before = set(threads_alive())
    batching, told = demo.batching(max_wait_ms=0), list[str]()

    def ask_again(_: Future[list[Caption]]) -> None:
        with pytest.raises(PatchcaptionError, match="cannot wait for captions of its own batching") as raised:
            batching.describe(features, REGIONS[1])
        told.append(str(raised.value))
        batching.close()
        told.append("closed")

    with batching._worker._changed:  # not answered before it has its callback
        answer = batching.submit(features, REGIONS[0])
        answer.add_done_callback(ask_again)
    assert len(answer.result(60)) == 2
    batching.close()
    assert len(told) == 2
    assert set(threads_alive()) <= before


def test_a_batching_that_is_dropped_answers_what_was_asked_and_leaves_no_thread(
    demo: Captioner, features: FeatureMap
) -> None:
    before = set(threads_alive())
    asked = [demo.batching(max_wait_ms=LONG_MS).submit(features, REGIONS[0]) for _ in range(3)]
    gc.collect()
    assert [texts(answer.result(60)) for answer in asked] == [texts(demo.describe(features, REGIONS[0]))] * 3
    for thread in set(threads_alive()) - before:
        thread.join(60)
    assert set(threads_alive()) <= before


@pytest.mark.parametrize("shared_by", ["captioner", "batching"])
def test_a_coroutine_gets_an_error_of_any_class(demo: Captioner, shared_by: str) -> None:
    class Image:
        def read(self) -> bytes:
            raise StopIteration

    async def caption(of: Captioner | Batching) -> None:
        await asyncio.wait_for(of.acaption(Image(), [WholeImage()]), 60)

    with demo.batching() as batching, pytest.raises(RuntimeError, match="StopIteration"):
        asyncio.run(caption(demo if shared_by == "captioner" else batching))


def test_coroutines_get_the_same_captions(demo: Captioner, features: FeatureMap) -> None:
    async def describe_all(batching: Batching) -> list[list[Caption]]:
        calls = [batching.adescribe(features, own) for own in REGIONS]
        calls += [batching.acaption(PIXELS, REGIONS[0]), demo.acaption(PIXELS, REGIONS[1])]
        return list(await asyncio.gather(*calls))

    with demo.batching(max_wait_ms=20) as batching:
        found = asyncio.run(describe_all(batching))
    expected = [texts(demo.describe(features, own)) for own in (*REGIONS, *REGIONS[:2])]
    assert [texts(captions) for captions in found] == expected


def test_a_cancelled_coroutine_does_not_affect_others(demo: Captioner, features: FeatureMap) -> None:
    async def cancel_one(batching: Batching) -> list[Caption]:
        cancelled, active = (asyncio.create_task(batching.adescribe(features, REGIONS[index])) for index in (0, 1))
        while len(batching._worker._waiting) < 2:
            await asyncio.sleep(0)
        cancelled.cancel()
        with pytest.raises(asyncio.CancelledError):
            await cancelled
        await asyncio.to_thread(batching.close)
        return await active

    with demo.batching(max_wait_ms=LONG_MS) as batching:
        assert texts(asyncio.run(cancel_one(batching))) == texts(demo.describe(features, REGIONS[1]))


def test_captions_that_depend_on_their_batch_are_refused(demo: Captioner, features: FeatureMap) -> None:
    with demo.batching() as batching, pytest.raises(OptionError, match='prompt_padding="reference": captions would'):
        batching.describe(features, [WholeImage()], prompt_padding="reference")
