"""The quality cost: captions that stay the same and tokens that stay near, on pictures or a user's images."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch

from runtime import Box, Captioner, WholeImage
from runtime.doctor.tuning.budget import Budget
from runtime.doctor.tuning.pictures import PICTURE_COUNT, draw_picture, regions_of
from runtime.doctor.tuning.quality import Quality, compare
from tests.doctor.tuning.doubles import FakeClock

CAPTIONS = 59


@dataclass
class FakeCaptioner:
    """A captioner that says a word of each region, but another of the first ones of image 1."""

    clock: FakeClock
    token: tuple[float, float] = (1.0, 0.0)
    others: int = 0
    seconds: float = 1.0

    def encode(self, image: int) -> SimpleNamespace:
        self.clock.seconds += self.seconds
        return SimpleNamespace(image_whs=((640, 480),), tokens=torch.tensor([self.token] * 3)[None], image=image)

    def describe(self, features: Any, regions: list[object]) -> list[SimpleNamespace]:
        others = self.others if features.image == 1 else 0
        return [SimpleNamespace(text="other" if number < others else "word") for number in range(len(regions))]

    def vectors(self, features: Any, regions: list[object]) -> torch.Tensor:
        return torch.full((len(regions), 2), float(features.image))


def compared(seconds: float, *captioners: FakeCaptioner, images: int = 2) -> Any:
    clock = captioners[0].clock
    competitors = {f"c{number}": cast(Captioner, one) for number, one in enumerate(captioners)}
    said: list[str] = []
    found = compare(competitors, cast(Any, list(range(images))), Budget(seconds, clock), said.append)
    assert said == [f"comparing the captions of image {number + 1} of {images}" for number in range(found.images)]
    return found


def test_captions_and_tokens_are_compared_with_the_first() -> None:
    clock = FakeClock()
    found = compared(100, FakeCaptioner(clock), FakeCaptioner(clock, (1.0, 1.0), others=7), FakeCaptioner(clock))
    assert found.qualities["c0"] == found.qualities["c2"] == Quality(1.0, 1.0)
    assert found.qualities["c1"].agreement == 1 - 7 / (2 * CAPTIONS)
    assert found.qualities["c1"].cosine == pytest.approx(0.5**0.5)
    assert (found.images, found.captions) == (2, 2 * CAPTIONS)
    assert torch.equal(found.vectors, torch.ones(CAPTIONS, 2))


@pytest.mark.parametrize(("seconds", "images"), [(0, 1), (3.9, 1), (4.1, 2), (8.1, 4), (100, 5)])
def test_no_image_is_begun_that_would_end_after_the_budget_but_one_always_is(seconds: float, images: int) -> None:
    clock = FakeClock()
    assert compared(seconds, FakeCaptioner(clock), FakeCaptioner(clock), images=5).images == images


def test_pictures_are_the_same_everywhere_and_all_others() -> None:
    pictures = [np.asarray(draw_picture(number)) for number in range(PICTURE_COUNT)]
    assert np.array_equal(pictures[0], np.asarray(draw_picture(0)))
    assert {picture.shape for picture in pictures} == {(480, 640, 3)}
    assert len({picture.tobytes() for picture in pictures}) == PICTURE_COUNT
    assert all(picture.std() > 40 for picture in pictures), "without contrast there is nothing to see"


def test_regions_are_windows_of_two_sizes_in_the_image_and_the_whole() -> None:
    *windows, whole = regions_of((640, 480))
    assert len(windows) + 1 == CAPTIONS
    assert isinstance(whole, WholeImage)
    boxes = [cast(Box, window) for window in windows]
    sides = {(round(box.x2 - box.x1, 9), round(box.y2 - box.y1, 9)) for box in boxes}
    assert sides == {(320, 240), (160, 120)}
    assert (boxes[0], boxes[8], boxes[-1]) == (Box(0, 0, 320, 240), Box(320, 240, 640, 480), Box(480, 360, 640, 480))
    assert min(min(box.x1, box.y1) for box in boxes) == 0
    assert (max(box.x2 for box in boxes), max(box.y2 for box in boxes)) == (640, 480)
