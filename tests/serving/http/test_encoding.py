"""The queue of images: those that wait go through the backbone together, and each keeps its own memory and errors."""

from __future__ import annotations

import io
from collections.abc import Iterator
from concurrent.futures import CancelledError, Future
from threading import Event
from typing import Any

import pytest
import torch
from PIL import Image

from runtime import Captioner, FeatureMap, ImageError
from runtime.serving.http.encoding import EncodingQueue
from runtime.serving.http.timed import Timed
from runtime.serving.limits import OverLimitError

SIDE = 40


def picture(colour: str, side: int = SIDE) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (side, side), colour).save(file, "PNG")
    return file.getvalue()


class Held:
    """A backbone that waits to be let go, and tells what it was given."""

    def __init__(self, captioner: Captioner) -> None:
        self._encode = captioner.encode
        self.sizes = list[int]()
        self.is_in, self.may_go = Event(), Event()

    def __call__(self, images: list[Any]) -> FeatureMap:
        self.sizes.append(len(images))
        self.is_in.set()
        assert self.may_go.wait(30)
        return self._encode(images)


@pytest.fixture
def held(demo: Captioner, monkeypatch: pytest.MonkeyPatch) -> Iterator[Held]:
    held = Held(demo)
    monkeypatch.setattr(demo, "encode", held)
    yield held
    held.may_go.set()


def submit_behind_another(queue: EncodingQueue, held: Held, *images: bytes) -> list[Future[Timed[FeatureMap]]]:
    """Submit images while the only worker has one; return what comes of them."""
    queue.submit(picture("white"))
    assert held.is_in.wait(30)
    return [queue.submit(image) for image in images]


def test_those_that_wait_are_encoded_together_each_as_by_itself(demo: Captioner, held: Held) -> None:
    colours = ("red", "green", "blue")
    with EncodingQueue(demo, 1, 10**6) as queue:
        answers = submit_behind_another(queue, held, *map(picture, colours))
        held.may_go.set()
        maps = [answer.result(30).value for answer in answers]
    assert held.sizes == [1, 3]
    for colour, features in zip(colours, maps, strict=True):
        alone = held._encode(Image.new("RGB", (SIDE, SIDE), colour))
        torch.testing.assert_close(features.tokens, alone.tokens, atol=1e-5, rtol=1e-5)
        assert features.image_whs == ((SIDE, SIDE),)


def test_a_feature_map_keeps_none_of_the_others_memory(demo: Captioner, held: Held) -> None:
    with EncodingQueue(demo, 1, 10**6) as queue:
        answers = submit_behind_another(queue, held, *[picture("red")] * 4)
        held.may_go.set()
        for answer in answers:
            features = answer.result(30).value
            for tensor in (features.tokens, features.cls_attention_logits):
                assert tensor.untyped_storage().nbytes() == tensor.nbytes


def test_one_that_cannot_be_read_is_its_own_error(demo: Captioner, held: Held) -> None:
    damaged = picture("red")[:-20]
    with EncodingQueue(demo, 1, 10**6) as queue:
        good, bad, other = submit_behind_another(queue, held, picture("red"), damaged, picture("blue"))
        held.may_go.set()
        assert len(good.result(30).value) == len(other.result(30).value) == 1
        with pytest.raises(ImageError, match="^image bytes: cannot be read as an image"):
            bad.result(30)
    assert held.sizes == [1, 2]


def test_a_batch_has_no_more_pixels_than_one_image_may_have(demo: Captioner, held: Held) -> None:
    with EncodingQueue(demo, 1, 2 * SIDE**2) as queue:
        answers = submit_behind_another(queue, held, *[picture("red")] * 5)
        with pytest.raises(OverLimitError, match="expected at most 3200 pixels, got 57 x 57"):
            queue.submit(picture("red", 57))
        held.may_go.set()
        for answer in answers:
            answer.result(30)
    assert held.sizes == [1, 2, 2, 1]


def test_one_that_is_given_up_is_not_encoded(demo: Captioner, held: Held) -> None:
    with EncodingQueue(demo, 1, 10**6) as queue:
        given_up, wanted = submit_behind_another(queue, held, picture("red"), picture("blue"))
        assert given_up.cancel()
        held.may_go.set()
        wanted.result(30)
    assert held.sizes == [1, 1]


def test_an_error_of_the_backbone_is_told_to_all_who_wait_and_the_next_are_served(
    demo: Captioner, held: Held, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: object) -> FeatureMap:
        raise MemoryError("no room")

    with EncodingQueue(demo, 1, 10**6) as queue:
        with monkeypatch.context() as patch:
            patch.setattr(held, "_encode", fail)
            answers = submit_behind_another(queue, held, picture("red"), picture("blue"))
            held.may_go.set()
            for answer in answers:
                with pytest.raises(MemoryError, match="no room"):
                    answer.result(30)
        queue.submit(picture("red")).result(30)


def test_those_that_wait_when_it_closes_are_told_so(demo: Captioner, held: Held) -> None:
    queue = EncodingQueue(demo, 1, 10**6)
    (waiting,) = submit_behind_another(queue, held, picture("red"))
    closing = Event()
    waiting.add_done_callback(lambda _: closing.set())
    held.may_go.set()
    queue.close()
    assert closing.wait(30)
    if waiting.cancelled():
        with pytest.raises(CancelledError):
            waiting.result(0)
