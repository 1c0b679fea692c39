"""Streams that share a captioner: each gets its share, also where one call at a time is executed."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from itertools import count, cycle

import pytest
from PIL import Image

from runtime import Captioner, Frame, WholeImage
from runtime.video.merging import MergedStreams
from runtime.video.stream import CaptionStream, FrameCaptions
from runtime.video.turns import Party, Turns, turns_of
from tests.video.test_stream_faults import frame_image, within_time

IMAGES = [frame_image(number) for number in range(10)]


class Parties:
    """Threads that take turns, one at a time and in an order that the test decides."""

    def __init__(self) -> None:
        self.turns, self.taken = Turns(), list[str]()
        self._may_end = threading.Semaphore(0)
        self._threads = list[threading.Thread]()

    def ask(self, party: Party, name: str) -> None:
        """Let a party ask for a turn, and return when it waits or has it."""
        before = self.turns._arrivals

        def take() -> None:
            with self.turns.turn(party):
                self.taken.append(name)
                self._may_end.acquire()

        self._threads.append(threading.Thread(target=take, daemon=True))
        self._threads[-1].start()
        with self.turns._changed:
            assert self.turns._changed.wait_for(lambda: self.turns._arrivals > before, 60)

    def finish(self) -> str:
        """End all turns, and return their order."""
        self._may_end.release(len(self._threads))
        for thread in self._threads:
            thread.join(60)
            assert not thread.is_alive()
        return "".join(self.taken)


def test_turns_go_round_however_many_a_party_asks_for() -> None:
    parties, a, b, c = Parties(), Party(), Party(), Party()
    for party, name in ((a, "a"), (a, "a"), (a, "a"), (a, "a"), (b, "b"), (b, "b"), (c, "c")):
        parties.ask(party, name)
    assert parties.finish() == "abcabaa"


def test_who_was_idle_neither_waits_behind_the_others_nor_catches_up() -> None:
    parties, busy, idle = Parties(), Party(), Party()
    for _ in range(20):
        with parties.turns.turn(busy):
            pass
    for party, name in ((busy, "b"), (busy, "b"), (idle, "i"), (idle, "i"), (busy, "b"), (idle, "i")):
        parties.ask(party, name)
    assert parties.finish() == "bibibi"


def test_as_many_turns_at_once_are_taken_as_are_allowed() -> None:
    parties, party = Parties(), Party()
    parties.turns.allow(2)
    for _ in range(3):
        parties.ask(party, "a")
    assert parties.turns._running == 2
    assert parties.finish() == "aaa"


def test_an_error_ends_a_turn() -> None:
    turns, party = Turns(), Party()
    with pytest.raises(ZeroDivisionError), turns.turn(party):
        raise ZeroDivisionError
    with turns.turn(party):
        pass


@pytest.mark.slow
def test_streams_take_turns_where_one_call_at_a_time_is_executed(
    demo: Captioner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that is always ready, with four encoders, gets no more than a camera."""
    monkeypatch.setattr("runtime.video.turns._needs_turns", lambda _: True)
    monkeypatch.setattr(Turns, "allow", lambda *_: None)  # as on a GPU, whatever the workers
    streams = [
        demo.stream(cycle(IMAGES), [WholeImage()], reuse=None, workers=4),
        demo.stream(cycle(IMAGES), [WholeImage()], reuse=None, workers=1, policy="drop"),
    ]
    shares = taken(streams, 20)
    assert abs(shares[0] - shares[1]) <= 6, shares


def test_a_long_file_does_not_starve_a_camera(demo: Captioner) -> None:
    def file() -> Iterator[Frame]:
        for number in range(1000):
            yield Frame(number, None, IMAGES[number % 10])

    def camera() -> Iterator[Image.Image]:
        return (IMAGES[number % 10] for number in count())

    streams = [
        demo.stream(file(), [WholeImage()]),
        demo.stream(camera(), [WholeImage()], policy="drop"),
        demo.stream(camera(), [WholeImage()], policy="drop"),
    ]
    shares = taken(streams, 24)
    assert min(shares.values()) >= 24 // (4 * len(streams)), shares


def taken(streams: list[CaptionStream], frames: int) -> Counter[int]:
    """Return how many of so many frames each stream had described, when as many were."""

    def follow() -> Counter[int]:
        shares: Counter[int] = Counter()
        with MergedStreams(streams) as merged:
            while sum(shares.values()) < frames:
                arrival = merged.get()
                assert arrival is not None
                assert isinstance(arrival[1], FrameCaptions), arrival
                shares[arrival[0]] += 1
        return shares

    found = within_time(follow)
    assert isinstance(found, Counter)
    return found


def test_a_cpu_needs_no_turns_and_a_gpu_s_streams_share_theirs(
    demo: Captioner, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert turns_of(demo.pipeline) is None
    monkeypatch.setattr("runtime.video.turns._needs_turns", lambda _: True)
    turns = turns_of(demo.pipeline)
    assert turns is not None
    assert turns_of(demo.pipeline) is turns
