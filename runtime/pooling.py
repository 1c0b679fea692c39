"""From the tokens of images to region vectors: plain, of cleaned patches, or of patches that saw the last block again.

Shapes: B images, T tokens, D width, R regions, K tokens of one region at most.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from runtime.backends import Engine
from runtime.errors import PatchcaptionError, RegionError
from runtime.features import FeatureMap
from runtime.image import OpenImage
from runtime.options import Clean, CleanFrom, Reencode
from runtime.regions import AttentionHead, Box, Crop, PublishedBox, Region, Register, WholeImage, weight_rows

PUBLISHED_ALPHA = 0.4
"""What the recordings of the published system were made with."""

_REENCODED_VARIANCE = 0.5
_REENCODED_SCORES_AT_ONCE = 2**24
"""Regions x tokens x tokens of one call of the re-encoder: each head keeps that many float32 numbers."""
_REENCODED_PADDING, _REENCODED_SMALL = 1.25, 16
"""Regions share a call where the larger has at most that many times the tokens of the smaller, or that many tokens."""


@dataclass(frozen=True)
class Cleaning:
    """How patches are freed of what they share with the whole image before they are pooled (SPEC section 4).

    Attributes:
        kind: "orthogonal" takes away ``alpha`` of the part along the common vector; "contrastive" dims each coordinate
            by the common vector's.
        alpha: how much of the common part goes.
        common: where the common vector comes from: the cls token, or the patches weighted by the attention of cls.
        after_projection: whether patches and common vector go into text space before they are cleaned, or after.
    """

    kind: Clean
    alpha: float = PUBLISHED_ALPHA
    common: CleanFrom = "cls"
    after_projection: bool = True

    def __post_init__(self) -> None:
        if self.kind not in ("orthogonal", "contrastive"):
            raise PatchcaptionError(f'clean: expected "orthogonal" or "contrastive", got {self.kind!r}')
        if self.common not in ("cls", "attention"):
            raise PatchcaptionError(f'clean_from: expected "cls" or "attention", got {self.common!r}')

    def __call__(self, patches: Tensor, common: Tensor) -> Tensor:
        """Patches (P, D) without what they share with ``common`` (D,)."""
        if self.kind == "contrastive":
            return patches * (1 - common / (common.norm() + 1e-6))
        shared = (patches @ common) / common.square().sum()
        return patches - self.alpha * shared[:, None] * common


def pool(features: FeatureMap, regions: Sequence[Sequence[Region]]) -> Tensor:
    """The vectors (R, D) of each image's regions, one image after another: weights @ tokens.

    Raises:
        RegionError: a region has no place on its image.
    """
    parts = [
        _rows(features, image, own).to(tokens.device) @ tokens
        for image, (own, tokens) in enumerate(zip(regions, features.tokens, strict=True))
    ]
    return _joined(parts, features)


def pool_cleaned(
    features: FeatureMap,
    regions: Sequence[Sequence[Region]],
    cleaning: Cleaning,
    project: Callable[[Tensor], Tensor],
) -> Tensor:
    """The same of cleaned patches. These vectors are in text space already: they are not to be projected again.

    Registers and the cls token stand for the whole image: they are projected, but not cleaned.

    Args:
        project: vectors (P, D) into text space (P, D).
    """
    parts = []
    for image, (own, tokens) in enumerate(zip(regions, features.tokens, strict=True)):
        rows = _rows(features, image, own).to(tokens.device)
        used = rows.any(dim=0).nonzero()[:, 0]  # a bank is large: only tokens that count go through it
        is_patch = (used > features.registers)[:, None]
        units, common = F.normalize(tokens[used], dim=-1), F.normalize(_common(features, image, cleaning), dim=0)
        if cleaning.after_projection:
            units, common = F.normalize(project(units), dim=-1), F.normalize(project(common[None])[0], dim=0)
            cleaned = torch.where(is_patch, cleaning(units, common), units)
        else:
            cleaned = project(torch.where(is_patch, cleaning(units, common), units))
        parts.append(rows[:, used] @ cleaned)
    return _joined(parts, features)


def pool_reencoded(
    features: FeatureMap, regions: Sequence[Sequence[Region]], kind: Reencode, engine: Callable[[], Engine]
) -> Tensor:
    """The vectors (R, D) of regions whose patches pass the backbone's last block once more, without the other patches.

    Args:
        kind: "mean" of the patches; "cls" token, which passes with them; "gaussian", whose weights are applied before
            the second pass, which therefore changes nothing (SPEC section 4).
        engine: opens the re-encoder: tokens (R, K, D), present (R, K) and weights (R, K) to vectors (R, D).

    Raises:
        RegionError: a region is not one of patches.
    """
    if kind not in ("mean", "cls", "gaussian"):
        raise PatchcaptionError(f'reencode: expected "mean", "cls" or "gaussian", got {kind!r}')
    with_others = 1 + features.registers
    taken = [
        [_as_reencoded(region, kind, features, image, number) for number, region in enumerate(own)]
        for image, own in enumerate(regions)
    ]
    if kind == "gaussian":
        return pool(features, taken)
    parts = [_rows(features, image, own) for image, own in enumerate(taken)]
    weights = torch.cat(parts) if parts else torch.empty(0, features.tokens.shape[1])
    present = weights > 0
    if kind == "cls":
        present[:, :with_others] = True
        weights = F.one_hot(torch.zeros(len(weights), dtype=torch.long), weights.shape[1]).float()
    images = torch.tensor([image for image, own in enumerate(taken) for _ in own], dtype=torch.long)
    device = features.tokens.device
    return _run_reencoder(engine(), features.tokens, images.to(device), present.to(device), weights.to(device))


def cuts(features: FeatureMap, regions: Sequence[Sequence[Region]]) -> dict[int, OpenImage]:
    """What regions that are encoded by themselves show, by their place among all regions.

    Raises:
        RegionError: a crop lies outside its image, or the features were made without their images.
    """
    found: dict[int, OpenImage] = {}
    places = ((image, number) for image, own in enumerate(regions) for number in range(len(own)))
    for place, (image, number) in enumerate(places):
        region = regions[image][number]
        if not isinstance(region, Crop):
            continue
        if features.images is None:
            raise _located(features, image, number, f"{region}: these features were made without their image")
        try:
            found[place] = region.cut(features.images[image])
        except RegionError as error:
            raise _located(features, image, number, str(error)) from None
    return found


def _as_reencoded(region: Region, kind: Reencode, features: FeatureMap, image: int, number: int) -> Region:
    """A box pooled as the kind says, and in published form rounded as the published re-encoding rounds."""
    if isinstance(region, PublishedBox):
        region = replace(region, rounding="corners")
    if isinstance(region, (Box, PublishedBox)):
        return replace(region, pool="gaussian" if kind == "gaussian" else "mean", variance=_REENCODED_VARIANCE)
    if isinstance(region, (AttentionHead, Crop, Register, WholeImage)) or kind == "gaussian":
        kinds = "boxes" if kind == "gaussian" else "regions of patches"
        raise _located(features, image, number, f'{region}: reencode="{kind}" takes {kinds} only')
    return region


def _run_reencoder(engine: Engine, tokens: Tensor, images: Tensor, present: Tensor, weights: Tensor) -> Tensor:
    """Vectors (R, D) of the present tokens (R, T) of each region's image (R,) in ``tokens`` (B, T, D)."""
    vectors = tokens.new_empty(len(present), tokens.shape[-1])
    counts = present.sum(dim=1)
    first_present = present.to(torch.uint8).argsort(dim=1, descending=True, stable=True)
    for group in _groups(counts.tolist()):
        places = first_present[group, : int(counts[group].max())]  # (r, K); what is too many for a region is masked
        out = engine.run(
            {
                "tokens": tokens[images[group, None], places],
                "present": present[group].gather(1, places),
                "weights": weights[group].gather(1, places),
            }
        )
        vectors[group] = out["vectors"]
    return vectors


def _groups(counts: Sequence[int]) -> list[list[int]]:
    """Regions by number in groups of like token counts, so that padding stays small and scores fit in memory."""
    groups: list[list[int]] = []
    for region in sorted(range(len(counts)), key=counts.__getitem__):
        largest = counts[region]
        is_alike = groups and largest <= max(_REENCODED_PADDING * counts[groups[-1][0]], _REENCODED_SMALL)
        if not is_alike or (len(groups[-1]) + 1) * largest**2 > _REENCODED_SCORES_AT_ONCE:
            groups.append([])
        groups[-1].append(region)
    return groups


def _common(features: FeatureMap, image: int, cleaning: Cleaning) -> Tensor:
    """The vector (D,) that an image's patches are freed of."""
    if cleaning.common == "cls":
        return features.cls[image]
    return features.cls_attention[image] @ features.patches[image]


def _rows(features: FeatureMap, image: int, regions: Sequence[Region]) -> Tensor:
    try:
        return weight_rows(regions, features.canvases[image])
    except RegionError as error:
        raise error if len(features) == 1 else RegionError(f"image {image}: {error}") from None


def _located(features: FeatureMap, image: int, number: int, message: str) -> RegionError:
    where = f"region {number}" if len(features) == 1 else f"image {image}: region {number}"
    return RegionError(f"{where}: {message}")


def _joined(parts: Sequence[Tensor], features: FeatureMap) -> Tensor:
    return torch.cat(list(parts)) if parts else features.tokens.new_empty(0, features.tokens.shape[-1])
