"""Stage 3: the tokens of images -> region vectors: plain, of cleaned patches, of re-encoded patches, or of crops.

Shapes: B images, T tokens, D width, R regions, K tokens of the largest region, P patches.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from runtime.errors import RegionError
from runtime.features import FeatureMap, RegionVectors
from runtime.image import OpenImage, View
from runtime.options import PoolingOptions, Reencode
from runtime.regions import (
    Box,
    BoxSet,
    Canvas,
    Crop,
    PublishedBox,
    Region,
    WholeImage,
    is_of_patches,
    marked_pixels,
    weight_rows,
)
from runtime.regions.published import Rounding
from runtime.system.forks import require_own_engines

EncodeMarked: TypeAlias = Callable[[Sequence[OpenImage], Sequence[View], Tensor, Tensor, Tensor], Tensor]

_REENCODED_VARIANCE = 0.5
"""The variance of the Gaussian that the published re-encoding weights boxes by."""


class Pooler:
    """Pools the tokens of regions into vectors.

    Args:
        encode_crops: images to their cls tokens (R, D), for regions that are cropped and encoded.
        reencode: the backbone's last block, for regions that pass it once more (`RegionReencoder`).
        project: vectors (P, D) into text space (P, D), for cleaning, which may happen there.
        encode_marked: images, their views, the image of each region (R,), the pixels that it covers (R, S, S) and the
            weights of its tokens (R, T) to vectors (R, D), for a backbone that sees what is to be described: that is
            how its regions are re-encoded. None for others.
    """

    def __init__(
        self,
        encode_crops: Callable[[Sequence[OpenImage]], Tensor],
        reencode: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor],
        project: Callable[[Tensor], Tensor],
        encode_marked: EncodeMarked | None = None,
    ) -> None:
        self._encode_crops, self._reencode, self._project = encode_crops, reencode, project
        self._encode_marked = encode_marked

    def __call__(
        self, features: FeatureMap, regions: Sequence[Sequence[Region]], options: PoolingOptions
    ) -> RegionVectors:
        """Return the vectors of each image's regions, one image's after another's.

        Raises:
            RegionError: a region has no place on its image, or is not of a kind that an option takes.
            BundleError: the bundle was built without what an option needs.
        """
        require_own_engines()
        if options.reencode and self._encode_marked:
            data = _pool_marked(features, regions, options.reencode, self._encode_marked)
        elif options.reencode:
            data = _pool_reencoded(features, regions, options.reencode, self._reencode)
        elif options.clean:
            data = _pool_cleaned(features, regions, options, self._project)
        else:
            data = _pool(features, regions)
        crops = _crop_images(features, regions)
        if crops:
            cls = self._encode_crops(list(crops.values()))
            data[list(crops)] = self._project(cls) if options.clean else cls
        return RegionVectors(data, "text" if options.clean else "visual")

    def pool_rows(
        self, features: FeatureMap, rows: Sequence[Region | RegionError], options: PoolingOptions
    ) -> tuple[RegionVectors, list[RegionError | None]]:
        """Return the vectors of those of one image's regions that have one, and the error of each that has none.

        Args:
            rows: its regions, and the errors of those that could not be made.

        Raises:
            BundleError: the bundle was built without what an option needs.
        """
        errors = [row if isinstance(row, RegionError) else None for row in rows]
        regions = {number: row for number, row in enumerate(rows) if not isinstance(row, RegionError)}
        try:
            return self(features, [list(regions.values())], options), errors
        except RegionError:  # of one of them: each by itself
            vectors = self(features, [[]], options)
        parts = [vectors.data]
        for number, region in regions.items():
            try:
                parts.append(self(features, [[region]], options).data)
            except RegionError as error:
                errors[number] = RegionError(str(error).removeprefix("region 0: "))
        return replace(vectors, data=torch.cat(parts)), errors


def _pool(features: FeatureMap, regions: Sequence[Sequence[Region]]) -> Tensor:
    """Return weights @ tokens (R, D)."""
    parts = [
        _weight_rows(features, image, own).to(tokens.device) @ tokens
        for image, (own, tokens) in enumerate(zip(regions, features.tokens, strict=True))
    ]
    return _concat(parts, features)


def _pool_cleaned(
    features: FeatureMap,
    regions: Sequence[Sequence[Region]],
    options: PoolingOptions,
    project: Callable[[Tensor], Tensor],
) -> Tensor:
    """Return vectors (R, D) of cleaned patches, in text space (published-system.md, section 4).

    The global tokens stand for the whole image: they are projected, but not cleaned.
    """
    parts = []
    for image, (own, tokens) in enumerate(zip(regions, features.tokens, strict=True)):
        rows = _weight_rows(features, image, own).to(tokens.device)
        used = rows.any(dim=0).nonzero()[:, 0]  # a bank is large: only tokens with weight go through it
        is_patch = (used >= features.layout.num_global)[:, None]
        units, common = F.normalize(tokens[used], dim=-1), F.normalize(_common(features, image, options), dim=0)
        if options.clean_after_projection:
            units, common = F.normalize(project(units), dim=-1), F.normalize(project(common[None])[0], dim=0)
            cleaned = torch.where(is_patch, _remove_common(units, common, options), units)
        else:
            cleaned = project(torch.where(is_patch, _remove_common(units, common, options), units))
        parts.append(rows[:, used] @ cleaned)
    return _concat(parts, features)


def _common(features: FeatureMap, image: int, options: PoolingOptions) -> Tensor:
    """Return the common vector (D,) that an image's patches are cleaned of."""
    if options.clean_from == "cls":
        return features.tokens[image, Canvas.require_cls(features.layout, fix="leave out clean")]
    return features.cls_attention[image] @ features.patches[image]


def _remove_common(patches: Tensor, common: Tensor, options: PoolingOptions) -> Tensor:
    """Return patches (P, D) without the component that they share with ``common`` (D,)."""
    if options.clean == "contrastive":
        return patches * (1 - common / (common.norm() + 1e-6))
    coefficients = (patches @ common) / common.square().sum()
    return patches - options.alpha * coefficients[:, None] * common


def _pool_reencoded(
    features: FeatureMap,
    regions: Sequence[Sequence[Region]],
    kind: Reencode,
    reencode: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor],
) -> Tensor:
    """Return the vectors (R, D) of regions whose patches pass the last block once more, without the other patches.

    "gaussian" applies its weights before that second pass, which then has no effect (published-system.md, section 4).
    """
    adapted = [
        [_adapt_region(region, kind, features, image, number) for number, region in enumerate(own)]
        for image, own in enumerate(regions)
    ]
    if kind == "gaussian":
        return _pool(features, adapted)
    weights = _all_weight_rows(features, adapted)
    mask = weights > 0
    if kind == "cls":
        mask[:, : features.layout.num_global] = True
        weights = _of_cls_alone(len(mask), features)
    images = _owners(adapted)
    device = features.tokens.device
    return reencode(features.tokens, images.to(device), mask.to(device), weights.to(device))


def _pool_marked(
    features: FeatureMap, regions: Sequence[Sequence[Region]], kind: Reencode, encode_marked: EncodeMarked
) -> Tensor:
    """Return the vectors (R, D) of regions that the backbone sees marked, each in a pass of its own.

    See published-system.md, section 17.
    """
    adapted = [
        [_adapt_marked(region, kind, features, image, number) for number, region in enumerate(own)]
        for image, own in enumerate(regions)
    ]
    size = features.views[0].size if len(features) else 0
    marks = torch.zeros((sum(map(len, adapted)), size, size), dtype=torch.bool)
    numbered = ((image, number, region) for image, own in enumerate(adapted) for number, region in enumerate(own))
    for row, (image, number, region) in zip(marks, numbered, strict=True):
        if features.images is None:
            raise _with_location(features, image, number, f"{region}: these features were made without their image")
        try:
            row.copy_(torch.from_numpy(marked_pixels(region, features.canvases[image])))
        except RegionError as error:
            raise _with_location(features, image, number, str(error)) from None
    weights = _of_cls_alone(len(marks), features) if kind == "cls" else _all_weight_rows(features, adapted)
    return encode_marked(features.images or (), features.views, _owners(adapted), marks, weights)


def _adapt_marked(region: Region, kind: Reencode, features: FeatureMap, image: int, number: int) -> Region:
    """Return a region as AlphaCLIP's are: published boxes without what their ends lie in, those of sets too."""
    if isinstance(region, WholeImage):
        return region
    if isinstance(region, BoxSet) and kind != "gaussian":
        return BoxSet(_pooled_as(box, kind, "corners_without_end") for box in region.boxes)
    return _adapt_region(region, kind, features, image, number, "corners_without_end")


def _all_weight_rows(features: FeatureMap, regions: Sequence[Sequence[Region]]) -> Tensor:
    """Return the weights (R, T) of all images' regions."""
    parts = [_weight_rows(features, image, own) for image, own in enumerate(regions)]
    return torch.cat(parts) if parts else torch.empty(0, features.tokens.shape[1])


def _of_cls_alone(count: int, features: FeatureMap) -> Tensor:
    """Return so many rows of weights (R, T) that are those of cls."""
    weights = torch.zeros(count, features.tokens.shape[1])
    weights[:, Canvas.require_cls(features.layout, fix='use reencode="mean"')] = 1
    return weights


def _owners(regions: Sequence[Sequence[Region]]) -> Tensor:
    """Return the number of each region's image (R,)."""
    return torch.tensor([image for image, own in enumerate(regions) for _ in own], dtype=torch.long)


def _adapt_region(
    region: Region, kind: Reencode, features: FeatureMap, image: int, number: int, rounding: Rounding = "corners"
) -> Region:
    """Return a box pooled as the kind says, and in published form rounded as the published re-encoding rounds."""
    if isinstance(region, (Box, PublishedBox)):
        return _pooled_as(region, kind, rounding)
    if not is_of_patches(region) or kind == "gaussian":
        kinds = "boxes" if kind == "gaussian" else "regions of patches"
        raise _with_location(features, image, number, f'{region}: reencode="{kind}" takes {kinds} only')
    return region


def _pooled_as(box: Box | PublishedBox, kind: Reencode, rounding: Rounding) -> Box | PublishedBox:
    """Return a box with the pool of a kind, and in published form rounded so."""
    if isinstance(box, PublishedBox):
        box = replace(box, rounding=rounding)
    return replace(box, pool="gaussian" if kind == "gaussian" else "mean", variance=_REENCODED_VARIANCE)


def _crop_images(features: FeatureMap, regions: Sequence[Sequence[Region]]) -> dict[int, OpenImage]:
    """Return the images of regions that are encoded by themselves, by their index among all regions.

    Raises:
        RegionError: a crop lies outside its image, or the features were made without their images.
    """
    crops: dict[int, OpenImage] = {}
    numbered = ((image, number) for image, own in enumerate(regions) for number in range(len(own)))
    for index, (image, number) in enumerate(numbered):
        region = regions[image][number]
        if not isinstance(region, Crop):
            continue
        if features.layout.cls_index is None:
            raise _with_location(features, image, number, f"{region}: the backbone has no cls token; use a Box")
        if features.images is None:
            raise _with_location(features, image, number, f"{region}: these features were made without their image")
        try:
            crops[index] = region.cut(features.images[image])
        except RegionError as error:
            raise _with_location(features, image, number, str(error)) from None
    return crops


def _weight_rows(features: FeatureMap, image: int, regions: Sequence[Region]) -> Tensor:
    try:
        return weight_rows(regions, features.canvases[image])
    except RegionError as error:
        raise error if len(features) == 1 else RegionError(f"image {image}: {error}") from None


def _with_location(features: FeatureMap, image: int, number: int, message: str) -> RegionError:
    where = f"region {number}" if len(features) == 1 else f"image {image}: region {number}"
    return RegionError(f"{where}: {message}")


def _concat(parts: Sequence[Tensor], features: FeatureMap) -> Tensor:
    return torch.cat(list(parts)) if parts else features.tokens.new_empty(0, features.tokens.shape[-1])
