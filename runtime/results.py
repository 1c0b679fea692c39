"""Captions, and the nesting that regions come in and captions go out in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from runtime.errors import RegionError
from runtime.memory import MemoryMatch
from runtime.regions import Detection, Region, RegionRow
from runtime.regions.detections import RegionsLike, as_rows, split_images
from runtime.regions.inputs.entries import ImageSize

Regions: TypeAlias = RegionsLike
"""The regions of one image, in any form that docs/regions.md lists."""
RegionsOfImages: TypeAlias = "Sequence[RegionsLike]"
"""The regions of each of several images."""


@dataclass(frozen=True)
class Caption:
    """A region in words.

    Attributes:
        text: the caption.
        score: the decoder's probability of exactly this caption, its end token included, in 0..1; with mode="nearest"
            the similarity of the memory bank's caption.
        ids: its token ids, up to and including the end token where it was reached; none with mode="nearest".
        region: the region it describes; None when it was decoded from a bare vector.
        nearest: the captions of the memory bank nearest to the region, as many as were asked for.
        reused: whether it was taken over from an earlier frame of a stream, as the region has hardly changed since.
        error: None; or why the region has no caption, where ``on_bad="skip"`` passed over it. Its text is empty then,
            its score 0, and its region None if it could not even be made.
        detection: what a detector, a tracker or a data set said of the region: its id, class and confidence; None where
            the regions were given without.

    Example:
        >>> caption = captioner.caption(scene, [Box(276, 174, 507, 399)], n_best=1)[0]
        >>> caption.text, round(caption.score, 2), caption.nearest[0].text
        ('a large striped red triangle', 1.0, 'a large striped red triangle')
    """

    text: str
    score: float
    ids: tuple[int, ...]
    region: Region | None = None
    nearest: tuple[MemoryMatch, ...] = ()
    reused: bool = False
    error: str | None = None
    detection: Detection | None = None

    @classmethod
    def missing(cls, region: Region | None, error: str) -> Caption:
        """Return what stands in the place of a caption that there is none of.

        Example:
            >>> row = Caption.missing(None, "Box x1: expected a finite number, got nan")
            >>> row.text, row.score, row.error
            ('', 0.0, 'Box x1: expected a finite number, got nan')
        """
        return cls("", 0.0, (), region, error=error)


def caption_of(row: RegionRow, caption: Caption) -> Caption:
    """Return a caption as that of a region, with what was said of the region."""
    region = None if isinstance(row.region, RegionError) else row.region
    return replace(caption, region=region, detection=row.detection)


def with_missing(captions: Sequence[Caption], errors: Sequence[RegionError | None]) -> list[Caption]:
    """Return the captions of the regions that have one, and among them those of the regions that have an error."""
    described = iter(captions)
    return [next(described) if error is None else Caption.missing(None, str(error)) for error in errors]


@dataclass(frozen=True, eq=False)
class RegionBatch:
    """The R regions of B images, and whether they were given as one list or as a list for each image.

    Attributes:
        by_image: the regions of each image, and the errors of those that are none.
        is_nested: whether they were given as a list for each image.
    """

    by_image: tuple[list[RegionRow], ...]
    is_nested: bool

    @classmethod
    def of(cls, regions: Regions | RegionsOfImages, image_whs: Sequence[ImageSize]) -> RegionBatch:
        """Return the regions of images as a batch.

        Args:
            image_whs: the width and height of each image, in pixels; None for one that cannot be read.

        Raises:
            RegionError: they are in no form of regions, or not as many lists as images.
        """
        of_images, is_nested = split_images(regions, len(image_whs))
        rows = [
            _with_image(number, len(image_whs), of_image, image_wh)
            for number, (of_image, image_wh) in enumerate(zip(of_images, image_whs, strict=True))
        ]
        return cls(tuple(rows), is_nested)

    def __len__(self) -> int:
        """Return R."""
        return sum(map(len, self.by_image))

    def regions(self) -> list[list[Region]]:
        """Return the regions of each image.

        Raises:
            RegionError: the first that is none, by its number.
        """
        return [
            [self._checked(image, number, row.region) for number, row in enumerate(rows)]
            for image, rows in enumerate(self.by_image)
        ]

    def unflatten(self, captions: Sequence[Caption]) -> list[Caption] | list[list[Caption]]:
        """Return R captions with their regions, in the nesting that the regions were given in."""
        rows = [row for of_image in self.by_image for row in of_image]
        described = iter([caption_of(row, caption) for row, caption in zip(rows, captions, strict=True)])
        nested = [[next(described) for _ in of_image] for of_image in self.by_image]
        return nested if self.is_nested else nested[0]

    def _checked(self, image: int, number: int, region: Region | RegionError) -> Region:
        if isinstance(region, RegionError):
            where = f"region {number}" if len(self.by_image) == 1 else f"image {image}: region {number}"
            raise RegionError(f"{where}: {region}")
        return region


def _with_image(number: int, num_images: int, regions: Any, image_wh: ImageSize) -> list[RegionRow]:
    """Return the rows of one image's regions; errors say which image's, where there are several."""
    try:
        return as_rows(regions, image_wh)
    except RegionError as error:
        raise error if num_images == 1 else RegionError(f"image {number}: {error}") from None
