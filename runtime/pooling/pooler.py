"""Stage 3: the tokens of images -> region vectors: plain, of cleaned patches, of re-encoded patches, or of crops.

Shapes: B images, T tokens, D width, R regions, K tokens of the largest region, P patches.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from runtime.errors import RegionError
from runtime.features import FeatureMap, RegionVectors
from runtime.image import OpenImage
from runtime.options import PoolingOptions, Reencode
from runtime.regions import Box, Canvas, Crop, PublishedBox, Region, is_of_patches, weight_rows
from runtime.system.forks import require_own_engines

_REENCODED_VARIANCE = 0.5
"""The variance of the Gaussian that the published re-encoding weights boxes by."""


class Pooler:
    """Pools the tokens of regions into vectors.

    Args:
        encode_crops: images to their cls tokens (R, D), for regions that are cropped and encoded.
        reencode: the backbone's last block, for regions that pass it once more (`RegionReencoder`).
        project: vectors (P, D) into text space (P, D), for cleaning, which may happen there.
    """

    def __init__(
        self,
        encode_crops: Callable[[Sequence[OpenImage]], Tensor],
        reencode: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor],
        project: Callable[[Tensor], Tensor],
    ) -> None:
        self._encode_crops, self._reencode, self._project = encode_crops, reencode, project

    def __call__(
        self, features: FeatureMap, regions: Sequence[Sequence[Region]], options: PoolingOptions
    ) -> RegionVectors:
        """Return the vectors of each image's regions, one image's after another's.

        Raises:
            RegionError: a region has no place on its image, or is not of a kind that an option takes.
            BundleError: the bundle was built without what an option needs.
        """
        require_own_engines()
        if options.reencode:
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
    parts = [_weight_rows(features, image, own) for image, own in enumerate(adapted)]
    weights = torch.cat(parts) if parts else torch.empty(0, features.tokens.shape[1])
    mask = weights > 0
    if kind == "cls":
        mask[:, : features.layout.num_global] = True
        weights = torch.zeros_like(weights)
        weights[:, Canvas.require_cls(features.layout, fix='use reencode="mean"')] = 1
    images = torch.tensor([image for image, own in enumerate(adapted) for _ in own], dtype=torch.long)
    device = features.tokens.device
    return reencode(features.tokens, images.to(device), mask.to(device), weights.to(device))


def _adapt_region(region: Region, kind: Reencode, features: FeatureMap, image: int, number: int) -> Region:
    """Return a box pooled as the kind says, and in published form rounded as the published re-encoding rounds."""
    if isinstance(region, PublishedBox):
        region = replace(region, rounding="corners")
    if isinstance(region, (Box, PublishedBox)):
        return replace(region, pool="gaussian" if kind == "gaussian" else "mean", variance=_REENCODED_VARIANCE)
    if not is_of_patches(region) or kind == "gaussian":
        kinds = "boxes" if kind == "gaussian" else "regions of patches"
        raise _with_location(features, image, number, f'{region}: reencode="{kind}" takes {kinds} only')
    return region


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
