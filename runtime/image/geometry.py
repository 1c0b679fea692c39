"""How an image lies on the backbone's square input: the geometry that ties image pixels to input pixels."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import numpy as np
import numpy.typing as npt


class Fit(str, Enum):
    """How an image is brought to the backbone's square input (published-system.md, section 1).

    Example:
        >>> with Captioner.load("engines/demo", fit=Fit.CROP) as cropping:
        ...     cropping.encode(scene).views[0].fit
        <Fit.CROP: 'crop'>
    """

    STRETCH = "stretch"
    """The whole image; its aspect ratio is not kept."""
    CROP = "crop"
    """The centre square, after the short side was resized to the input's size."""


@dataclass(frozen=True)
class View:
    """Where the pixels of an image lie on the backbone's square input.

    ``x_input = x * resized_wh[0] / image_wh[0] - offset_xy[0]``, and the same for y; what lies in 0..size is seen.
    """

    image_wh: tuple[int, int]
    resized_wh: tuple[int, int]
    offset_xy: tuple[int, int]
    size: int
    fit: Fit

    @classmethod
    def of(cls, image_wh: tuple[int, int], size: int, fit: Fit, resize: int | None = None) -> View:
        """Return the view of an image of ``image_wh`` pixels on an input of ``size`` x ``size``.

        Args:
            resize: what a crop makes of the short side before it cuts out the centre; None for ``size``.
        """
        if fit is Fit.STRETCH:
            return cls(image_wh, (size, size), (0, 0), size, fit)
        width, height = image_wh
        short = resize or size
        # The long side is cut, not rounded, and the offset rounded half to even: the published rule.
        resized = (short, int(short * height / width)) if width <= height else (int(short * width / height), short)
        offset = (round((resized[0] - size) / 2), round((resized[1] - size) / 2))
        return cls(image_wh, resized, offset, size, fit)

    def to_input(self, points: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Return image pixels (..., 2) as (x, y) in input pixels (..., 2)."""
        return points * (np.array(self.resized_wh) / np.array(self.image_wh)) - np.array(self.offset_xy)

    def to_image(self, points: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Return input pixels (..., 2) as (x, y) in image pixels (..., 2)."""
        return (points + np.array(self.offset_xy)) * (np.array(self.image_wh) / np.array(self.resized_wh))

    def published_box(self, x: float, y: float, width: float, height: float) -> tuple[float, float, float, float]:
        """Return a box by corner and size in image pixels as one in input pixels, by the published rule.

        See published-system.md, section 1. Its rounding differs from that of `to_input`, and it does not shrink a box
        by what the crop cuts off its left or top.
        """
        scales = np.array(self.resized_wh) / np.array(self.image_wh)
        if self.fit is Fit.CROP:
            scales[:] = min(self.resized_wh) / min(self.image_wh)
        resized = (np.array(self.image_wh) * scales).astype(int)
        corner = np.array([x, y]) * scales - np.maximum((resized - self.size) // 2, 0)
        corner = corner.clip(0, self.size - 1)
        extent = (np.array([width, height]) * scales).clip(0, self.size - corner)
        return (*corner.tolist(), *extent.tolist())
