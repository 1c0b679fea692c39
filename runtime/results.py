"""Captions, and the nesting that regions come in and captions go out in."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

from runtime.errors import RegionError
from runtime.memory import MemoryMatch
from runtime.regions import Region

Regions: TypeAlias = Sequence[Region]
RegionsOfImages: TypeAlias = Sequence[Sequence[Region]]


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

    @classmethod
    def missing(cls, region: Region | None, error: str) -> Caption:
        """Return what stands in the place of a caption that there is none of.

        Example:
            >>> row = Caption.missing(None, "Box x1: expected a finite number, got nan")
            >>> row.text, row.score, row.error
            ('', 0.0, 'Box x1: expected a finite number, got nan')
        """
        return cls("", 0.0, (), region, error=error)


@dataclass(frozen=True, eq=False)
class RegionBatch:
    """The R regions of B images, and whether they were given as one list or as a list for each image.

    Attributes:
        by_image: the regions of each image.
        is_nested: whether they were given as a list for each image.
    """

    by_image: tuple[Regions, ...]
    is_nested: bool

    @classmethod
    def of(cls, regions: Regions | RegionsOfImages, num_images: int) -> RegionBatch:
        """Return the regions of so many images as a batch.

        Raises:
            RegionError: they are no list, or not as many lists as images.
        """
        if isinstance(regions, (str, bytes)) or not isinstance(regions, Sequence):
            raise RegionError(f"regions: expected a list of regions, got {type(regions).__name__}")
        if len(regions) > 0 and all(isinstance(entry, (list, tuple)) for entry in regions):
            if len(regions) != num_images:
                raise RegionError(f"regions: expected {num_images} lists, one for each image, got {len(regions)}")
            return cls(tuple(regions), is_nested=True)  # type: ignore[arg-type]  # lists, as was checked
        if num_images == 0 and not regions:
            return cls((), is_nested=True)
        if num_images != 1:
            raise RegionError(f"regions: {num_images} images were encoded; give a list of regions for each of them")
        return cls((regions,), is_nested=False)  # type: ignore[arg-type]  # regions, each of which is checked later

    def __iter__(self) -> Iterator[Region]:
        """Yield all regions, one image's after another's."""
        return (region for of_image in self.by_image for region in of_image)

    def unflatten(self, captions: Sequence[Caption]) -> list[Caption] | list[list[Caption]]:
        """Return R captions with their regions, in the nesting that the regions were given in."""
        described = iter([replace(caption, region=region) for caption, region in zip(captions, self, strict=True)])
        nested = [[next(described) for _ in of_image] for of_image in self.by_image]
        return nested if self.is_nested else nested[0]
