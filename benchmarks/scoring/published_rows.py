"""The paper's own scores, to stand beside those of a bundle.

They are rows of DeCap's decoder with its memory bank. All scores are in percent, mAP too, which the paper writes as a
fraction.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from benchmarks.scoring.region_forms import RegionForm
from runtime.bundle import Manifest

SOURCE = '"One Patch to Caption Them All" (Patch-ioner), tables of the project\'s page'

PUBLISHED_POOLS = {"captions": "gaussian", "dense": "mean", "sets": "mean", "traces": "count"}
"""How the paper pools patches, by the kind of ground truth; those of boxes also by a Gaussian, those of whole images
also uniformly and by attention."""
PUBLISHED_VARIANCE = 1.0
"""Of the paper's Gaussians."""
_UNIFORM_VARIANCE = 100.0
"""From which on a Gaussian of a whole image is the mean of its patches."""

Pool: TypeAlias = Literal["cls", "uniform", "gaussian", "attention"]


@dataclass(frozen=True)
class PublishedDataSet:
    """A file that the paper scores on.

    Attributes:
        kind: as `benchmarks.scoring.annotation_kinds` has them.
        file: its name, where the paper gives it.
        images, captions: how many the paper says there are, captions of people; None where it does not say.
        has_rows: whether there are rows of it here.
    """

    name: str
    kind: str
    file: str | None = None
    images: int | None = None
    captions: int | None = None
    has_rows: bool = True

    def may_be(self, file: str, images: int, captions: int) -> bool:
        """Return whether a file with so many images and captions may be this one; by its name if no count is known."""
        known = [(one, count) for one, count in ((self.images, images), (self.captions, captions)) if one is not None]
        return all(one == count for one, count in known) if known else self.file == file


DATA_SETS = (
    PublishedDataSet("Visual Genome 1.2, dense test", "dense", images=5000),
    PublishedDataSet("COCO traces", "traces", "trace_capt_coco_test.json"),
    PublishedDataSet("COCO Entities", "sets", "coco_entities_test.json", 3569, 6617),
    PublishedDataSet("Flickr30k Entities", "sets", images=1000, captions=3968, has_rows=False),
    PublishedDataSet("COCO", "captions", "coco-test.json", 5000),
    PublishedDataSet("Flickr30k", "captions", images=1000, captions=5000, has_rows=False),
)


@dataclass(frozen=True)
class PublishedRow:
    """A row of the paper.

    Attributes:
        kind: that of the ground truth.
        title: the backbone, as the tables name it.
        backbones: the names that bundles give it.
        pool: None where the table does not say.
        image_size: the side of its input in pixels; None where the table does not say.
        scores: by the names of metrics, in percent.
    """

    kind: str
    title: str
    backbones: Sequence[str]
    pool: Pool | None
    image_size: int | None
    scores: Mapping[str, float]

    @property
    def name(self) -> str:
        """Its name in a report."""
        size = f" @{self.image_size}" if self.image_size else ""
        return f"published (paper): Patch-ioner, {self.title}{size}{f', {self.pool}' if self.pool else ''}"

    def is_of(self, manifest: Manifest, pool: Pool | None) -> bool:
        """Return whether a bundle is what the row was made with."""
        backbone = manifest.backbone
        return (
            backbone.name in self.backbones
            and self.image_size in (None, backbone.preprocessing.image_size)
            and self.pool in (None, pool)
            and manifest.decoder.kind == "decap"
            and manifest.memory is not None
            and manifest.memory.projects
        )


_B32, _B16 = ("clip_vitb32",), ("clip_vitb16",)
_DINOV2 = ("dinov2_vitb14_reg", "dinov2_vitb14")
_CLIP_B32, _CLIP_B16, _TALK2DINO = "CLIP ViT-B/32", "CLIP ViT-B/16", "DINOv2 ViT-B/14 with Talk2DINO"


def _dense(
    title: str, backbones: Sequence[str], size: int, pool: Pool, mean_ap: float, cider: float, ref_pac: float
) -> PublishedRow:
    scores = {"mAP": mean_ap, "CIDEr": cider, REF_PAC: ref_pac}
    return PublishedRow("dense", title, backbones, pool, size, scores)


def _texts(
    kind: str,
    title: str,
    backbones: Sequence[str],
    size: int | None,
    pool: Pool | None,
    cider: float,
    ref_pac: float,
) -> PublishedRow:
    return PublishedRow(kind, title, backbones, pool, size, {"CIDEr": cider, REF_PAC: ref_pac})


REF_PAC = "RefPAC-S (text to text)"
"""What the paper calls RefPAC-S."""

ROWS = (
    _dense(_CLIP_B32, _B32, 224, "uniform", 9, 5.39, 72.03),
    _dense(_CLIP_B32, _B32, 224, "gaussian", 9, 5.41, 71.90),
    _dense(_CLIP_B16, _B16, 224, "uniform", 12, 10.69, 74.07),
    _dense(_CLIP_B16, _B16, 224, "gaussian", 12, 10.58, 73.91),
    _dense(_CLIP_B16, _B16, 592, "uniform", 12, 10.89, 74.15),
    _dense(_CLIP_B16, _B16, 592, "gaussian", 12, 10.74, 73.99),
    _dense(_TALK2DINO, _DINOV2, 518, "uniform", 21, 31.94, 78.82),
    _dense(_TALK2DINO, _DINOV2, 518, "gaussian", 22, 32.80, 79.14),
    _dense(_TALK2DINO, _DINOV2, 518, "attention", 21, 30.58, 78.69),
    _texts("traces", _CLIP_B16, _B16, 592, "uniform", 10.9, 75.0),
    _texts("traces", _TALK2DINO, _DINOV2, None, "uniform", 27.9, 78.7),
    _texts("traces", _TALK2DINO, _DINOV2, None, "attention", 27.6, 78.1),
    _texts("sets", _TALK2DINO, _DINOV2, None, None, 109.1, 87.5),
    _texts("captions", "CLIP", _B16, None, None, 87.4, 90.6),
    _texts("captions", "RegionCLIP", ("regionclip_rn50",), None, None, 93.4, 91.2),
    _texts("captions", "AlphaCLIP", ("alphaclip_vitb16",), None, None, 89.7, 91.1),
    _texts("captions", _TALK2DINO, _DINOV2, None, None, 88.5, 90.2),
)


def find_row(kind: str, data_set: PublishedDataSet | None, manifest: Manifest, form: RegionForm) -> PublishedRow | None:
    """Return the paper's row for a bundle whose regions are pooled in that way; None where there is none.

    Args:
        data_set: what the bundle was scored on, if it may be a file of the paper; other data stand beside the row of
            the first file of their kind.
    """
    if data_set is not None and not data_set.has_rows:
        return None
    pool = published_pool(form)
    return next((row for row in ROWS if row.kind == kind and row.is_of(manifest, pool)), None)


def find_data_set(kind: str, file: str, images: int, captions: int) -> PublishedDataSet | None:
    """Return the paper's file of that kind that a file with so many images and captions may be; None for other data."""
    own = (one for one in DATA_SETS if one.kind == kind)
    return next((one for one in own if one.may_be(file, images, captions)), None)


def published_pool(form: RegionForm) -> Pool | None:
    """Return what the paper calls a way to pool patches; None for one that it does not score."""
    if form.pool in ("mean", "count") or (form.pool == "gaussian" and (form.variance or 0) >= _UNIFORM_VARIANCE):
        return "uniform"
    if form.pool == "gaussian":
        return "gaussian" if form.variance == PUBLISHED_VARIANCE else None
    return "attention" if form.pool == "attention" else "cls" if form.pool == "cls" else None
