"""The queue between two stages of a stream: what it holds, drops and passes on."""

from __future__ import annotations

import threading

import pytest

from runtime.video.queue import BoundedQueue, propagate_end


def filled(drops: bool, items: int, capacity: int = 2) -> BoundedQueue[int]:
    queue: BoundedQueue[int] = BoundedQueue(capacity, drops)
    for item in range(items):
        assert queue.put(item)
    return queue


def test_items_come_out_in_order_and_none_after_the_end() -> None:
    queue = filled(drops=False, items=2)
    queue.end()
    assert [queue.get() for _ in range(4)] == [0, 1, None, None]


def test_a_full_queue_drops_its_oldest_items_and_counts_them() -> None:
    queue = filled(drops=True, items=5)
    assert queue.dropped == 3
    assert queue.dropped_at_get == 0, "counted when an item is taken, for that item"
    assert queue.get() == 3
    assert queue.dropped_at_get == 3
    queue.put(5)
    queue.put(6)
    assert (queue.dropped, queue.dropped_at_get) == (4, 3)
    assert (queue.get(), queue.dropped_at_get) == (5, 4)


def test_a_full_queue_that_does_not_drop_lets_the_producer_wait() -> None:
    queue = filled(drops=False, items=2)
    added = threading.Event()

    def put() -> None:
        queue.put(2)
        added.set()

    producer = threading.Thread(target=put)
    producer.start()
    assert not added.wait(0.05)
    assert queue.get() == 0
    assert added.wait(20)
    producer.join()
    assert [queue.get(), queue.get()] == [1, 2]
    assert queue.dropped == 0


def test_a_consumer_that_stops_frees_a_waiting_producer() -> None:
    queue = filled(drops=False, items=2)
    results: list[bool] = []
    producer = threading.Thread(target=lambda: results.append(queue.put(2)))
    producer.start()
    queue.stop()
    producer.join(20)
    assert results == [False]


@pytest.mark.parametrize("drops", [True, False])
def test_a_stopped_queue_takes_and_gives_nothing(drops: bool) -> None:
    queue = filled(drops, items=2)
    queue.stop()
    assert queue.get() is None
    assert queue.put(2) is False
    assert queue.get() is None


def test_an_error_is_raised_once_after_the_items_before_it() -> None:
    queue = filled(drops=False, items=1)
    queue.end(ZeroDivisionError("gone"))
    assert queue.get() == 0
    with pytest.raises(ZeroDivisionError, match="gone"):
        queue.get()
    assert queue.get() is None


@pytest.mark.parametrize("error", [None, ZeroDivisionError("broken stage")])
def test_the_end_of_a_stage_ends_the_next_and_stops_the_one_before(error: Exception | None) -> None:
    upstream, downstream = filled(drops=False, items=1), filled(drops=False, items=1)
    with propagate_end(upstream, downstream):
        if error is not None:
            raise error
    assert upstream.put(7) is False
    assert downstream.get() == 0
    if error is None:
        assert downstream.get() is None
    else:
        with pytest.raises(ZeroDivisionError, match="broken stage"):
            downstream.get()
