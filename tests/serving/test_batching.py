"""One captioner for many callers: threads that share it, regions that are decoded together, asyncio."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier, Event
from typing import Any

import pytest
import torch
from runtime.wording import DecodingOptions
from torch import Tensor

from runtime import (
    Box,
    BundleError,
    Caption,
    Captioner,
    FeatureMap,
    PatchcaptionError,
    Point,
    Region,
    RegionError,
    WholeImage,
)
from runtime.backends.onnxruntime_gpu import CPU, OrtGpuBackend
from runtime.bundle import Bundle
from runtime.image import Fit
from runtime.serving.batching import Batching

PIXELS = torch.randint(0, 256, (3, 240, 320), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
REGIONS: list[list[Region]] = [
    [Box(10 * place, 8 * place, 10 * place + 90, 8 * place + 70), Point(20 * place, 15 * place)] for place in range(8)
]
LONG_MS = 60_000.0
"""A wait that no test has the time for: what is answered before was answered as a batch was full."""


@pytest.fixture(scope="module")
def features(demo: Captioner) -> FeatureMap:
    return demo.encode(PIXELS)


def texts(captions: list[Caption]) -> list[str]:
    return [caption.text for caption in captions]


def at_once(calls: list[Callable[[], Any]]) -> list[Any]:
    """What calls return that begin in as many threads at the same time."""
    barrier = Barrier(len(calls))

    def begin(call: Callable[[], Any]) -> Any:
        barrier.wait()
        return call()

    with ThreadPoolExecutor(len(calls)) as threads:
        return list(threads.map(begin, calls))


@pytest.fixture(scope="module", params=["cpu", "openvino", "bound memory"])
def shared(request: pytest.FixtureRequest, demo_bundle: Path) -> Iterator[Captioner]:
    """A captioner of each kind of engine; bound memory is what GPUs have."""
    if request.param == "bound memory":
        captioner = Captioner(Bundle(demo_bundle), OrtGpuBackend(CPU, torch.device("cpu")), Fit.STRETCH)
    else:
        captioner = Captioner.load(demo_bundle, str(request.param))
    with captioner:
        yield captioner


def test_eight_threads_get_the_captions_of_one(shared: Captioner) -> None:
    def work(place: int) -> list[list[str]]:
        image = PIXELS.roll(17 * place, dims=2)
        kinds = ({}, {"n_best": 2}, {"reencode": "mean"}, {"beams": 2}) if place % 2 else ({}, {"clean": "orthogonal"})
        regions = REGIONS[place][:1]
        return [texts(shared.caption(image, regions, **options)) for options in kinds]

    expected = [work(place) for place in range(8)]
    for _ in range(3):
        assert at_once([lambda place=place: work(place) for place in range(8)]) == expected


def test_what_arrives_together_is_decoded_together(
    demo: Captioner, features: FeatureMap, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = [texts(demo.describe(features, regions)) for regions in REGIONS]
    decoded: list[int] = []
    words = Captioner.words

    def counting(self: Captioner, vectors: Tensor, *rest: Any) -> list[Caption]:
        decoded.append(len(vectors))
        return words(self, vectors, *rest)

    monkeypatch.setattr(Captioner, "words", counting)
    with demo.batching(max_wait_ms=LONG_MS, max_regions=16) as batching:
        calls = [lambda own=own: texts(batching.describe(features, own)) for own in REGIONS]
        assert at_once(calls) == expected
    assert decoded == [16]


def test_a_batch_has_at_most_so_many_regions_and_a_larger_call_is_one_of_its_own(
    demo: Captioner, features: FeatureMap, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[int] = []

    def counting(_: Captioner, vectors: Tensor, *__: object) -> list[Caption]:
        decoded.append(len(vectors))
        return [Caption("", 1.0, ())] * len(vectors)

    monkeypatch.setattr(Captioner, "words", counting)
    with demo.batching(max_wait_ms=LONG_MS, max_regions=4) as batching:
        at_once([lambda own=own: batching.describe(features, own) for own in REGIONS])
        assert decoded == [4] * 4
        assert len(batching.describe(features, [*REGIONS[0], *REGIONS[1], *REGIONS[2]])) == 6
    assert decoded == [4, 4, 4, 4, 6]


def test_a_single_call_waits_no_longer_than_it_was_told_to(demo: Captioner, features: FeatureMap) -> None:
    with demo.batching(max_wait_ms=1, max_regions=1000) as batching:
        assert texts(batching.describe(features, REGIONS[0])) == texts(demo.describe(features, REGIONS[0]))
        assert batching.describe(features, []) == []
        nested = batching.caption([PIXELS, PIXELS], [REGIONS[0], REGIONS[1]])
    assert [texts(one) for one in nested] == [texts(demo.describe(features, own)) for own in REGIONS[:2]]


def test_calls_of_other_options_are_batches_of_their_own(demo: Captioner, features: FeatureMap) -> None:
    kinds: list[dict[str, Any]] = [{}, {"beams": 2}, {"n_best": 1}, {"mode": "nearest"}, {"clean": "orthogonal"}]
    expected = [demo.describe(features, REGIONS[0], **options) for options in kinds]
    with demo.batching(max_wait_ms=5) as batching:
        found = at_once([lambda how=how: batching.describe(features, REGIONS[0], **how) for how in kinds])
    assert [texts(one) for one in found] == [texts(one) for one in expected]
    assert [one[0].nearest for one in found] == [one[0].nearest for one in expected]
    assert [[caption.region for caption in one] for one in found] == [REGIONS[0]] * len(kinds)


def test_one_callers_mistake_harms_no_other(
    demo: Captioner, features: FeatureMap, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What cannot be laid on the image, has no such option, or breaks in the middle of a batch."""
    words, poison = Captioner.words, 7.0

    def breaking(self: Captioner, vectors: Tensor, wording: DecodingOptions, **_: object) -> list[Caption]:
        if (vectors == poison).all(dim=1).any():
            raise BundleError("broken in the middle")
        return words(self, vectors, wording)

    monkeypatch.setattr(Captioner, "words", breaking)
    poisoned = FeatureMap(
        torch.full_like(features.tokens, poison), features.cls_attention_logits, features.views, 14, 4
    )
    expected = texts(demo.describe(features, REGIONS[0]))
    with demo.batching(max_wait_ms=LONG_MS, max_regions=7) as batching:

        def caught(call: Callable[[], Any]) -> Any:
            try:
                return texts(call())
            except PatchcaptionError as error:
                return type(error)

        found = at_once(
            [
                lambda: caught(lambda: batching.describe(features, REGIONS[0])),
                lambda: caught(lambda: batching.describe(poisoned, [WholeImage()])),
                lambda: caught(lambda: batching.describe(features, [Box(900, 900, 950, 950)])),
                lambda: caught(lambda: batching.describe(features, REGIONS[0], beems=3)),  # type: ignore[call-overload]
                lambda: caught(lambda: batching.describe(features, REGIONS[0])),
                lambda: caught(lambda: batching.describe(features, REGIONS[0])),
            ]
        )
    assert found == [expected, BundleError, RegionError, PatchcaptionError, expected, expected]


def test_a_timeout_gives_up_and_harms_no_other(
    demo: Captioner, features: FeatureMap, monkeypatch: pytest.MonkeyPatch
) -> None:
    words, may_go, began = Captioner.words, Event(), Event()

    def slow(self: Captioner, vectors: Tensor, wording: DecodingOptions) -> list[Caption]:
        began.set()
        may_go.wait()
        return words(self, vectors, wording)

    expected = texts(demo.describe(features, REGIONS[1]))
    monkeypatch.setattr(Captioner, "words", slow)
    with demo.batching(max_wait_ms=0) as batching, ThreadPoolExecutor(1) as other:
        first = other.submit(batching.describe, features, REGIONS[1])
        began.wait()
        with pytest.raises(TimeoutError, match="no words after 0.01 s"):
            batching.describe(features, REGIONS[0], timeout_s=0.01)
        assert batching._waiting[0].answer.cancelled()
        may_go.set()
        assert texts(first.result()) == expected


def test_a_closed_batching_has_answered_all_and_takes_no_more(demo: Captioner, features: FeatureMap) -> None:
    batching = demo.batching(max_wait_ms=LONG_MS)
    with ThreadPoolExecutor(1) as other:
        waiting = other.submit(batching.describe, features, REGIONS[0])
        while not batching._waiting:
            pass
        batching.close()
        assert texts(waiting.result()) == texts(demo.describe(features, REGIONS[0]))
    with pytest.raises(PatchcaptionError, match="this batching was closed"):
        batching.describe(features, REGIONS[0])
    batching.close()
    assert not batching._worker.is_alive()


@pytest.mark.parametrize(
    ("options", "message"),
    [({"max_wait_ms": -1}, "max_wait_ms: .* got -1"), ({"max_regions": 0}, "max_regions: .* got 0")],
)
def test_limits_that_make_no_sense_are_refused(demo: Captioner, options: dict[str, Any], message: str) -> None:
    with pytest.raises(PatchcaptionError, match=message):
        demo.batching(**options)


def test_coroutines_get_the_same_captions(demo: Captioner, features: FeatureMap) -> None:
    async def all_of(batching: Batching) -> list[list[Caption]]:
        asked = [batching.adescribe(features, own) for own in REGIONS]
        asked += [batching.acaption(PIXELS, REGIONS[0]), demo.acaption(PIXELS, REGIONS[1])]
        return list(await asyncio.gather(*asked))

    with demo.batching(max_wait_ms=20) as batching:
        found = asyncio.run(all_of(batching))
    expected = [texts(demo.describe(features, own)) for own in (*REGIONS, *REGIONS[:2])]
    assert [texts(one) for one in found] == expected


def test_a_cancelled_coroutine_harms_no_other(demo: Captioner, features: FeatureMap) -> None:
    async def cancel_one(batching: Batching) -> list[Caption]:
        given_up, going = (asyncio.create_task(batching.adescribe(features, REGIONS[place])) for place in (0, 1))
        while len(batching._waiting) < 2:
            await asyncio.sleep(0)
        given_up.cancel()
        with pytest.raises(asyncio.CancelledError):
            await given_up
        await asyncio.to_thread(batching.close)
        return await going

    with demo.batching(max_wait_ms=LONG_MS) as batching:
        assert texts(asyncio.run(cancel_one(batching))) == texts(demo.describe(features, REGIONS[1]))
