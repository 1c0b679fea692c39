"""CLIP-S, PAC-S and their forms with references: how well captions fit the images, and regions, that they describe.

Both metrics embed an image and a caption by CLIP ViT-B/32 and compare the directions; PAC-S is CLIP-S with other
weights and another factor. With cos(a, b) the cosine of two embeddings, c a candidate, i its image with the region
drawn on it, and R its references, each text after "A photo depicts ", a sample's values are

| name | value | defined by |
|---|---|---|
| CLIP-S | 2.5 max(cos(i, c), 0) | Hessel et al. 2021 |
| CLIP-S (cropped), PAC-S (cropped) | the same, with the box cut out of its image for i | the published system |
| RefCLIP-S | harmonic mean of CLIP-S and max(cos(c, r) over r in R, 0) | Hessel et al. 2021 |
| PAC-S | 2 max(cos(i, c), 0) | Sarto et al. 2023 |
| RefPAC-S | harmonic mean of PAC-S and max(cos(c, r) over r in R, 0) | Sarto et al. 2023 |
| RefPAC-S (text to text) | max(cos(c, r) over r in R) | the published system |

The published system calls the last one RefPAC-S, and its tables P, times 100. It sees no image, has no factor and is
not clipped: it cannot be compared with the RefPAC-S of other papers.

A region is drawn as the published system draws it (`drawn_regions`), and the picture then saved as JPEG; whole images
are taken as they are. An empty caption scores as its prefix does, above 0.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from PIL import Image
from torch import Tensor

from benchmarks.scoring.drawn_regions import cut_out, draw_region, through_jpeg
from benchmarks.scoring.image_text_models import ImageTextModel
from benchmarks.scoring.metric_score import MetricScore
from runtime import Region, WholeImage
from runtime.image import open_image

PREFIX = "A photo depicts "
METRICS = (
    "CLIP-S",
    "CLIP-S (cropped)",
    "RefCLIP-S",
    "PAC-S",
    "PAC-S (cropped)",
    "RefPAC-S",
    "RefPAC-S (text to text)",
)
"""All names, in the order in which they are reported."""

_FACTORS = {"CLIP-S": 2.5, "PAC-S": 2.0}
_SAMPLES_AT_ONCE = 64
_Columns: TypeAlias = "dict[str, array[float]]"
"""The values of samples by name, 8 bytes each."""


@dataclass(frozen=True)
class ImageTextSample:
    """A caption to score.

    Attributes:
        image: the image, of any mode, upright or with an EXIF orientation.
        region: what the caption describes: a box, a set of boxes, a trace or the whole image.
        candidate: the caption; it may be empty.
        references: the captions that people gave the region; without any there are no scores against them.
    """

    image: Image.Image
    region: Region
    candidate: str
    references: tuple[str, ...] = ()


class ImageTextScorer:
    """Scores captions as they come, and keeps the numbers of each sample, no images or texts.

    Args:
        clip: the model of CLIP-S; None leaves its metrics out.
        pac: the model of PAC-S; None leaves its metrics out.
    """

    def __init__(self, clip: ImageTextModel | None, pac: ImageTextModel | None) -> None:
        given = {"CLIP-S": clip, "PAC-S": pac}
        self.models = {metric: model for metric, model in given.items() if model is not None}
        self._values: _Columns = {}

    def add(self, samples: Sequence[ImageTextSample]) -> list[dict[str, float]]:
        """Score samples; return the values of each by the names of `METRICS`, for `restore` to take back.

        Values that do not apply are missing: those of a metric without a model, "(cropped)" for regions other than
        boxes, and those with references where there are none.

        Raises:
            ImageError: an image has no pixels that can be told.
            RegionError: a region cannot be drawn.
        """
        starts = range(0, len(samples), _SAMPLES_AT_ONCE)
        values = [value for start in starts for value in self._score(samples[start : start + _SAMPLES_AT_ONCE])]
        self.restore(values)
        return values

    def restore(self, values: Iterable[Mapping[str, float]]) -> None:
        """Take in the values of samples that were scored before."""
        _collect(values, self._values)

    def scores(self) -> dict[str, MetricScore]:
        """Return what `summarize` makes of the values of all samples."""
        return _scores_of(self._values)

    def _score(self, samples: Sequence[ImageTextSample]) -> list[dict[str, float]]:
        pictures: dict[str, list[Tensor]] = {metric: [] for metric in self.models}
        crops: dict[str, dict[int, Tensor]] = {metric: {} for metric in self.models}
        for number, sample in enumerate(samples):
            drawn, cropped = _pictures(sample)
            for metric, model in self.models.items():
                pictures[metric].append(model.pixels(drawn))
                if cropped is not None:
                    crops[metric][number] = model.pixels(cropped)
        values: list[dict[str, float]] = [{} for _ in samples]
        for metric, model in self.models.items():
            candidates = model.embed_texts([PREFIX + sample.candidate for sample in samples])
            _add_fits(metric, values, model.embed_pixels(pictures[metric]), candidates)
            if crops[metric]:
                numbers = list(crops[metric])
                boxes = model.embed_pixels(list(crops[metric].values()))
                _add_fits(metric, [values[number] for number in numbers], boxes, candidates[numbers], " (cropped)")
            _add_references(metric, values, _nearest(model, samples, candidates))
        return values


def summarize(values: Iterable[Mapping[str, float]]) -> dict[str, MetricScore]:
    """Return the mean and the population standard deviation of samples' values, by name, in the order of `METRICS`.

    A name that some samples lack is that of the others; one that all of them lack is missing.
    """
    columns: _Columns = {}
    _collect(values, columns)
    return _scores_of(columns)


def _collect(values: Iterable[Mapping[str, float]], columns: _Columns) -> None:
    for sample in values:
        for name in METRICS:
            if name in sample:
                columns.setdefault(name, array("d")).append(sample[name])


def _scores_of(columns: _Columns) -> dict[str, MetricScore]:
    return {name: MetricScore.of_samples(columns[name]) for name in METRICS if name in columns}


def _pictures(sample: ImageTextSample) -> tuple[Image.Image, Image.Image | None]:
    """Return what is looked at: the image with the region drawn on it, and the region cut out if it is a box."""
    image = open_image(sample.image)
    if isinstance(sample.region, WholeImage):
        return image, None
    cropped = cut_out(image, sample.region)
    return through_jpeg(draw_region(image, sample.region)), None if cropped is None else through_jpeg(cropped)


def _add_fits(metric: str, values: Sequence[dict[str, float]], images: Tensor, texts: Tensor, form: str = "") -> None:
    """Add how well images (B, D) and texts (B, D) fit to the values of B samples."""
    fits = _FACTORS[metric] * (images.double() * texts.double()).sum(1).clamp_min(0)
    for own, fit in zip(values, fits.tolist(), strict=True):
        own[metric + form] = fit


def _nearest(model: ImageTextModel, samples: Sequence[ImageTextSample], candidates: Tensor) -> list[float | None]:
    """Return each candidate's cosine with the reference that it is nearest to; None where there are none.

    Args:
        candidates: embeddings (B, D) of the samples' captions.
    """
    texts = [PREFIX + reference for sample in samples for reference in sample.references]
    if not texts:
        return [None] * len(samples)
    counts = [len(sample.references) for sample in samples]
    groups = model.embed_texts(texts).double().split(counts)
    return [
        float((group @ candidate).max()) if len(group) else None
        for group, candidate in zip(groups, candidates.double(), strict=True)
    ]


def _add_references(metric: str, values: Sequence[dict[str, float]], nearest: Sequence[float | None]) -> None:
    for own, cosine in zip(values, nearest, strict=True):
        if cosine is None:
            continue
        own[f"Ref{metric}"] = _harmonic_mean(own[metric], max(cosine, 0.0))
        if metric == "PAC-S":
            own["RefPAC-S (text to text)"] = cosine


def _harmonic_mean(first: float, second: float) -> float:
    return 2 * first * second / (first + second) if first and second else 0.0
