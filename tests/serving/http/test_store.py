"""The feature maps that are kept: within their budgets, the least recently asked out first, and gone with a reason."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from runtime.bundle import TokenLayout
from runtime.features import FeatureMap
from runtime.image import Fit, View
from runtime.serving.http.errors import RequestError
from runtime.serving.http.settings import ServiceLimits
from runtime.serving.http.store import FeatureStore, bytes_of

TOKENS_BYTES = (1 + 4) * 8 * 4
ATTENTION_BYTES = 2 * 4 * 4
IMAGE_BYTES = 4 * 30 * 20
ALL_BYTES = TOKENS_BYTES + ATTENTION_BYTES + IMAGE_BYTES


@dataclass
class Clock:
    seconds: float = 0.0

    def __call__(self) -> float:
        return self.seconds


def feature_map(*, keeps_image: bool = True) -> FeatureMap:
    layout = TokenLayout.with_cls(num_registers=0, grid=2)
    images = (Image.new("RGB", (30, 20)),) if keeps_image else None
    view = View.of((30, 20), 28, Fit.STRETCH)
    return FeatureMap(torch.zeros(1, 5, 8), torch.zeros(1, 2, 4), (view,), layout, images)


def store_of(num_maps: int, clock: Clock | None = None) -> FeatureStore:
    return FeatureStore(ServiceLimits(feature_bytes=num_maps * ALL_BYTES, feature_seconds=10), clock or Clock())


def reason(store: FeatureStore, id: str) -> str:
    with pytest.raises(RequestError) as error:
        store.get(id)
    assert error.value.status == 404
    return str(error.value)


def test_bytes_are_those_of_tensors_and_images() -> None:
    assert bytes_of(feature_map()) == ALL_BYTES == 2592
    assert bytes_of(feature_map(keeps_image=False)) == TOKENS_BYTES + ATTENTION_BYTES


def test_the_least_recently_asked_makes_room() -> None:
    store = store_of(2)
    first, second = store.add(feature_map()), store.add(feature_map())
    store.get(first)
    third = store.add(feature_map())
    assert reason(store, second) == f"features '{second}': it made room for others; encode the image again"
    assert store.get(first) is not store.get(third)
    assert (len(store), store.num_bytes) == (2, 2 * ALL_BYTES)


def test_one_that_is_larger_than_all_room_is_refused_and_throws_none_out() -> None:
    store = FeatureStore(ServiceLimits(feature_bytes=ALL_BYTES - 1))
    kept = store.add(feature_map(keeps_image=False))
    with pytest.raises(
        RequestError, match=r"features: 2592 bytes with the image, and the service keeps at most 2591"
    ) as error:
        store.add(feature_map())
    assert error.value.status == 507
    store.get(kept)


def test_one_that_nobody_asks_expires_and_asking_keeps_it() -> None:
    clock = Clock()
    store = store_of(5, clock)
    asked, forgotten = store.add(feature_map()), store.add(feature_map())
    clock.seconds = 9
    store.get(asked)
    clock.seconds = 10
    assert reason(store, forgotten) == f"features '{forgotten}': nobody asked it for 10 s; encode the image again"
    store.get(asked)
    clock.seconds = 20
    store.sweep()
    assert (len(store), store.num_bytes) == (0, 0)


def test_ids_cannot_be_guessed_and_one_that_never_was_is_told_so() -> None:
    store = store_of(5)
    assert len({store.add(feature_map()) for _ in range(100)}) == 100
    assert reason(store, "x" * 1000).endswith("there is none of that id; POST /v1/features makes one")
    assert len(reason(store, "x" * 1000)) < 150


def test_a_deleted_one_says_so_and_reasons_are_forgotten_at_last(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runtime.serving.http.store._REMEMBERED", 3)
    store = store_of(1)
    ids = [store.add(feature_map()) for _ in range(5)]
    store.remove(ids[-1])
    with pytest.raises(RequestError, match="it was deleted"):
        store.remove(ids[-1])
    assert "made room" in reason(store, ids[3])
    assert "there is none of that id" in reason(store, ids[0])


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["add", "get", "remove", "wait"]), st.integers(0, 30)), max_size=60))
def test_whatever_is_done_the_budgets_hold(steps: list[tuple[str, int]]) -> None:
    clock = Clock()
    store, ids, asked_at = store_of(3, clock), [""], dict[str, float]()
    for step, number in steps:
        id = ids[number % len(ids)]
        if step == "add":
            ids.append(store.add(feature_map()))
            asked_at[ids[-1]] = clock.seconds
        elif step == "wait":
            clock.seconds += number / 3
        else:
            try:
                store.get(id) if step == "get" else store.remove(id)
                assert clock.seconds - asked_at[id] < 10
                asked_at[id] = clock.seconds
            except RequestError:
                assert id not in store._kept
        assert store.num_bytes == len(store) * ALL_BYTES <= 3 * ALL_BYTES
