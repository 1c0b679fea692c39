"""A region in words, and captions in the nesting that their regions were asked in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import TypeAlias, TypeGuard, cast, overload

from runtime.errors import RegionError
from runtime.features import FeatureMap
from runtime.memory.bank import MemoryMatch
from runtime.regions import Region

Regions: TypeAlias = Sequence[Region]
RegionsOfImages: TypeAlias = Sequence[Sequence[Region]]


@dataclass(frozen=True)
class Caption:
    """A region in words.

    Attributes:
        text: the caption.
        score: the decoder's probability of exactly this caption, its end token included, in 0..1; with mode="nearest"
            the similarity of the memory's caption.
        ids: its token ids, up to and including the end token where it was reached; none with mode="nearest".
        region: the region it describes; None when it was decoded from a bare vector.
        nearest: the captions of the memory bank nearest to the region, as many as were asked for.
        reused: whether it is that of an earlier frame, from which the region has hardly changed; of streams only.

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


@overload
def as_asked(features: FeatureMap, regions: Regions, described: Sequence[Caption]) -> list[Caption]: ...
@overload
def as_asked(features: FeatureMap, regions: RegionsOfImages, described: Sequence[Caption]) -> list[list[Caption]]: ...


def as_asked(
    features: FeatureMap, regions: Regions | RegionsOfImages, described: Sequence[Caption]
) -> list[Caption] | list[list[Caption]]:
    """Captions in the order of regions, with their regions, in the nesting that those were given in."""
    nested = by_image(features, regions)
    of_regions = (replace(one, region=region) for one, region in zip(described, chain(*nested), strict=True))
    captions = [[next(of_regions) for _ in of_image] for of_image in nested]
    return captions[0] if captions and not is_nested(regions) else captions


def is_nested(regions: Regions | RegionsOfImages) -> TypeGuard[RegionsOfImages]:
    """Whether these are lists of regions, one for each image."""
    return len(regions) > 0 and all(isinstance(entry, (list, tuple)) for entry in regions)


def by_image(features: FeatureMap, regions: Regions | RegionsOfImages) -> RegionsOfImages:
    """The regions of each image, whether given as one list for one image or as a list for each."""
    if isinstance(regions, (str, bytes)) or not isinstance(regions, Sequence):
        raise RegionError(f"regions: expected a list of regions, got {type(regions).__name__}")
    if is_nested(regions):
        if len(regions) != len(features):
            raise RegionError(f"regions: expected {len(features)} lists, one for each image, got {len(regions)}")
        return regions
    if len(features) == 0 and not regions:
        return []
    if len(features) != 1:
        raise RegionError(f"regions: {len(features)} images were encoded; give a list of regions for each of them")
    return [cast(Regions, regions)]
