"""Boxes: one, several under one caption, and crops, which are cut out and encoded by themselves."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, TypeAlias

import numpy as np
from PIL import Image

from runtime.errors import RegionError
from runtime.image import OpenImage, size_wh
from runtime.regions import checks
from runtime.regions.canvas import Array, Canvas, gaussian
from runtime.regions.outline import BoxesOutline
from runtime.regions.published import PublishedBox

Pool: TypeAlias = Literal["mean", "gaussian", "attention"]
POOLS = ("mean", "gaussian", "attention")


@dataclass(frozen=True)
class Box:
    """A box in image pixels, from its top left corner (x1, y1) to its bottom right corner (x2, y2), as in torchvision.

    The part that reaches outside the image is cut off; a box wholly outside is an error.

    Args:
        pool: the weights of its patches: "mean" takes how much of each the box covers; "gaussian" multiplies that by
            its nearness to the box's middle, "attention" by how much cls attends to it.
        variance: the Gaussian's, with the centres of the box's outermost patches at -1 and 1; 0 is the one patch in the
            middle.

    Example:
        >>> captioner.caption(scene, [Box(276, 174, 507, 399)])[0].text
        'a large striped red triangle'
        >>> Box(10, 10, 5, 20)
        Traceback (most recent call last):
            ...
        runtime.errors.RegionError: Box(x1=10.0, y1=10.0, x2=5.0, y2=20.0, ...): expected x1 < x2 and y1 < y2; ...
    """

    x1: float
    y1: float
    x2: float
    y2: float
    pool: Pool = "mean"
    variance: float = 0.5

    def __post_init__(self) -> None:
        _check_corners(self)
        checks.one_of("Box", "pool", self.pool, POOLS)
        object.__setattr__(self, "variance", checks.variance("Box", self.variance))

    @classmethod
    def from_xywh(
        cls, x: float, y: float, width: float, height: float, pool: Pool = "mean", variance: float = 0.5
    ) -> Box:
        """Return the box of a top left corner and a size.

        Example:
            >>> Box.from_xywh(276, 174, 231, 225) == Box(276, 174, 507, 399)
            True
        """
        return cls(x, y, x + width, y + height, pool, variance)

    @classmethod
    def from_normalized(
        cls,
        x1: float,
        y1: float,
        x2: float,
        y2: float,
        image_wh: tuple[int, int],
        pool: Pool = "mean",
        variance: float = 0.5,
    ) -> Box:
        """Return the box of corners in 0..1 of an image's width and height.

        Example:
            >>> Box.from_normalized(0.25, 0.5, 0.75, 1, image_wh=(640, 480))
            Box(x1=160.0, y1=240.0, x2=480.0, y2=480.0, pool='mean', variance=0.5)
        """
        width, height = image_wh
        return cls(x1 * width, y1 * height, x2 * width, y2 * height, pool, variance)

    @staticmethod
    def published(
        x: float,
        y: float,
        width: float,
        height: float,
        pool: Pool = "mean",
        variance: float = 0.5,
        frame: Literal["crop", "image"] = "crop",
    ) -> PublishedBox:
        """Return a box in pixels of the backbone's input, rounded to patches exactly as published.

        See published-system.md, section 4.

        Args:
            frame: "image" if the pixels are the image's, which then go through the published rule (published-system.md,
                section 1).

        Example:
            >>> captioner.caption(scene, [Box.published(95, 60, 80, 78)])[0].text
            'a large striped red triangle'
        """
        return PublishedBox(x, y, width, height, pool, variance, frame)

    def weights(self, canvas: Canvas) -> Array:
        check_on_image(self, canvas.view.image_wh)
        inside = np.clip([[self.x1, self.y1], [self.x2, self.y2]], 0, canvas.view.image_wh)
        x_edges, y_edges = canvas.view.to_input(inside).T
        coverage = canvas.overlap(y_edges) * canvas.overlap(x_edges).T
        if self.pool == "gaussian":
            coverage *= gaussian(_box_coordinates(canvas, y_edges), _box_coordinates(canvas, x_edges), self.variance)
        elif self.pool == "attention":
            coverage *= canvas.attention
        return canvas.from_patches(coverage)

    def outline(self, _image_wh: tuple[int, int]) -> BoxesOutline:
        return BoxesOutline(((self.x1, self.y1, self.x2, self.y2),))


@dataclass(frozen=True)
class BoxSet:
    """Several boxes under one caption; each counts the same, whatever its size.

    It is the region set of published-system.md, section 4.

    Args:
        boxes: boxes, or their corners (x1, y1, x2, y2).
        pool: the pool of every box; None leaves each its own.
        variance: the Gaussian's, if ``pool`` is given.

    Example:
        >>> captioner.caption(scene, [BoxSet([Box(90, 420, 321, 648), Box(453, 450, 582, 582)])])[0].text
        'a green square and a pink ring'
    """

    boxes: tuple[Box | PublishedBox, ...]

    def __init__(
        self,
        boxes: Iterable[Box | PublishedBox | Sequence[float]],
        pool: Pool | None = None,
        variance: float = 0.5,
    ) -> None:
        members = [box if isinstance(box, (Box, PublishedBox)) else Box(*_four_numbers("BoxSet", box)) for box in boxes]
        if not members:
            raise RegionError("BoxSet: expected at least one box, got none")
        if pool is not None:
            members = [replace(box, pool=pool, variance=variance) for box in members]
        object.__setattr__(self, "boxes", tuple(members))

    @classmethod
    def published(
        cls,
        boxes: Iterable[Sequence[float]],
        pool: Pool = "mean",
        variance: float = 0.5,
        frame: Literal["crop", "image"] = "crop",
    ) -> BoxSet:
        """Return a set of boxes (x, y, width, height) as `Box.published` takes them; sums below 0 mark padding.

        Example:
            >>> len(BoxSet.published([(31, 145, 80, 78), (156, 155, 45, 46), (-1, -1, -1, -1)]).boxes)
            2
        """
        numbers = [_four_numbers("BoxSet.published", box) for box in boxes]
        return cls([PublishedBox(*box, pool, variance, frame) for box in numbers if sum(box) >= 0])

    def weights(self, canvas: Canvas) -> Array:
        return np.mean([box.weights(canvas) for box in self.boxes], axis=0)

    def outline(self, image_wh: tuple[int, int]) -> BoxesOutline | None:
        outlines = [box.outline(image_wh) for box in self.boxes if isinstance(box, Box)]
        return BoxesOutline(tuple(corners for outline in outlines for corners in outline.corners)) if outlines else None


@dataclass(frozen=True)
class Crop:
    """A box in image pixels, cut from the image and encoded by itself: one more pass of the backbone for each.

    It is rounded to whole pixels and stretched to the backbone's square, and its cls token is captioned
    (published-system.md, section 4).

    Example:
        >>> captioner.vectors(captioner.encode(scene), [Crop(250, 150, 530, 420)]).shape
        torch.Size([1, 192])
    """

    is_of_patches: ClassVar[bool] = False

    x1: float
    y1: float
    x2: float
    y2: float

    def __post_init__(self) -> None:
        _check_corners(self)

    def cut(self, image: OpenImage) -> OpenImage:
        """Return the part of the image that the crop covers, on the image's device.

        Raises:
            RegionError: no pixel of the crop lies on the image.

        Example:
            >>> Crop(250, 150, 530, 420).cut(Image.open(scene)).size
            (280, 270)
        """
        width, height = size_wh(image)
        check_on_image(self, (width, height))
        left, top = max(0, round(self.x1)), max(0, round(self.y1))
        right, bottom = min(width, round(self.x2)), min(height, round(self.y2))
        if left >= right or top >= bottom:
            raise RegionError(f"{self}: expected at least one whole pixel")
        if isinstance(image, Image.Image):
            return image.crop((left, top, right, bottom))
        return image[:, top:bottom, left:right]

    def weights(self, canvas: Canvas) -> Array:
        """Return zeros (T,): the vector comes from the encoded crop, not from the image's tokens."""
        return np.zeros_like(canvas.token(0))

    def outline(self, _image_wh: tuple[int, int]) -> BoxesOutline:
        return BoxesOutline(((self.x1, self.y1, self.x2, self.y2),))


def _box_coordinates(canvas: Canvas, edges: Array) -> Array:
    """Return where the centre of each patch (G,) lies along a box from ``edges[0]`` to ``edges[1]``, in input pixels.

    The centres of a box's first and last whole patch are -1 and 1, so that a box of whole patches is the published one.
    """
    centres = (np.arange(canvas.grid) + 0.5) * canvas.patch
    half_length = max((edges[1] - edges[0] - canvas.patch) / 2, 1e-9)
    return ((centres - edges.mean()) / half_length).clip(-1, 1)


def _check_corners(box: Box | Crop) -> None:
    kind = type(box).__name__
    for name in ("x1", "y1", "x2", "y2"):
        object.__setattr__(box, name, checks.number(f"{kind} {name}", getattr(box, name)))
    if not (box.x1 < box.x2 and box.y1 < box.y2):
        raise RegionError(f"{box}: expected x1 < x2 and y1 < y2; from x, y, width and height use Box.from_xywh")


def check_on_image(box: Box | Crop, image_wh: tuple[int, int]) -> None:
    """Refuse a box that lies outside an image; warn of one that looks as if it were in 0..1 of it.

    Raises:
        RegionError: no part of the box lies on the image.
    """
    width, height = image_wh
    if box.x1 >= width or box.y1 >= height or box.x2 <= 0 or box.y2 <= 0:
        raise RegionError(f"{box} lies outside the image of {width} x {height} pixels")
    if max(box.x2, box.y2) <= 1 < min(width, height):
        # Without the box's numbers: Python shows a warning of the same words only once.
        warnings.warn(
            f"a box within the first pixel of an image of {width} x {height}: boxes are in pixels; for boxes in 0..1 "
            "of the image use Box.from_normalized",
            stacklevel=2,
        )


def _four_numbers(owner: str, numbers: Sequence[float]) -> tuple[float, float, float, float]:
    if len(numbers) != 4:
        raise RegionError(f"{owner}: expected boxes of 4 numbers, got {len(numbers)}")
    first, second, third, fourth = (checks.number(owner, number) for number in numbers)
    return first, second, third, fourth
