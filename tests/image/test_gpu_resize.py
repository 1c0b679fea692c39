"""Resizing on a device: what Pillow does, with torch's operators; here on the CPU."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from runtime.image import Fit, View, prepare
from runtime.image.gpu_resize import resize_and_crop, to_device
from runtime.regions import Crop

CPU = torch.device("cpu")


def photo(width: int, height: int, seed: int = 0) -> Image.Image:
    """Smooth in parts and sharp in others, with pure black and white, where bicubic overshoots."""
    random = np.random.default_rng(seed)
    pixels = random.integers(0, 256, (height, width, 3), np.uint8)
    pixels[: height // 2] = np.linspace(0, 255, width, dtype=np.uint8)[None, :, None]
    pixels[:, : width // 4] = np.where(random.random((height, width // 4, 1)) < 0.5, 0, 255)
    return Image.fromarray(pixels)


def fitted(image: Image.Image, view: View) -> Tensor:
    return resize_and_crop(to_device(image, CPU), view.resized_wh, view.offset_xy, view.size)


def check(image: Image.Image, size: int, fit: Fit, resize: int | None = None, share: float = 1e-5) -> None:
    """Within 1 of Pillow; for a share of pixels 2, where the second direction enlarges a difference of the first."""
    expected, (view,) = prepare([image], size, fit, resize)
    given = fitted(image, view)
    assert given.shape == (size, size, 3)
    assert given.dtype == torch.uint8
    difference = (given.int() - expected[0].int()).abs()
    assert difference.max() <= 2
    assert (difference > 1).float().mean() <= share


@pytest.mark.parametrize("fit", list(Fit))
@pytest.mark.parametrize(
    "image_wh", [(640, 480), (480, 640), (1920, 1080), (1080, 1920), (300, 1200), (37, 90), (5, 3), (1, 1), (224, 224)]
)
def test_it_is_pillows(image_wh: tuple[int, int], fit: Fit) -> None:
    check(photo(*image_wh), 224, fit)


sides = st.integers(1, 90)


@given(width=sides, height=sides, size=st.sampled_from([14, 28, 70]), fit=st.sampled_from(Fit))
@settings(max_examples=100, deadline=None)
def test_it_is_pillows_for_any_size(width: int, height: int, size: int, fit: Fit) -> None:
    check(photo(width, height), size, fit, share=2e-2)  # a pixel of few, enlarged to many


def test_the_short_side_may_be_larger_than_the_cut() -> None:
    check(photo(200, 150), 56, Fit.CROP, resize=64)


def test_an_image_of_the_right_size_stays_as_it_is() -> None:
    image = photo(28, 28)
    (view,) = prepare([image], 28, Fit.STRETCH)[1]
    np.testing.assert_array_equal(fitted(image, view), np.asarray(image))


def test_a_frame_has_its_channels_first() -> None:
    frame = to_device(photo(5, 3), CPU)
    assert frame.shape == (3, 3, 5)
    np.testing.assert_array_equal(frame.permute(1, 2, 0), np.asarray(photo(5, 3)))
    assert to_device(frame, CPU) is frame


def test_a_crop_is_the_same_part_of_a_frame_as_of_an_image() -> None:
    image, region = photo(40, 30), Crop(-3, 4.4, 20.6, 50)
    of_image, of_frame = region.cut(image), region.cut(to_device(image, CPU))
    assert isinstance(of_frame, Tensor)
    np.testing.assert_array_equal(of_frame.permute(1, 2, 0), np.asarray(of_image))
