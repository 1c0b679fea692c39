"""Captions of a bundle for the items of a ground truth, a few images at a time."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from PIL import Image

from benchmarks.scoring.ground_truth import AnnotatedImage, BoxAnnotation, Item
from benchmarks.scoring.image_text import ImageTextSample, ImageTextScorer
from benchmarks.scoring.metrics import clean_caption
from runtime import Caption, Captioner, ImageError
from runtime.image import open_image
from runtime.options import Score


@dataclass(frozen=True)
class Prediction:
    """The caption of one item.

    Attributes:
        caption: empty where the model does not see the region, and where the image cannot be read.
        score: how sure the decoder is of the caption, more being surer; None where there is no caption.
        references: the captions that it is compared with.
        image_text: how well caption and image fit, by the names of `image_text.METRICS`; none without its models, and
            where the image cannot be read.
    """

    caption: str
    score: float | None
    references: tuple[str, ...]
    image_text: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def missing(cls, item: Item) -> Prediction:
        """Return what stands in the place of the caption of an item that has none."""
        return cls("", None, item.references)


@dataclass(frozen=True)
class PredictedImage:
    """The captions of an image's items, in their order, by the image's id.

    Attributes:
        annotations: of dense captions, every annotated box.
    """

    id: str
    items: tuple[Prediction, ...]
    annotations: tuple[BoxAnnotation, ...] = ()

    @classmethod
    def without_captions(cls, image: AnnotatedImage) -> PredictedImage:
        """Return what stands in the place of the captions of an image that cannot be read."""
        return cls(image.id, tuple(map(Prediction.missing, image.items)), image.annotations)


@dataclass(frozen=True)
class BadImage:
    """An image that has no captions, by its id, and why."""

    id: str
    reason: str


def predict(
    captioner: Captioner,
    images: Sequence[AnnotatedImage],
    files: Mapping[str, Path],
    score: Score = "natural",
    scorer: ImageTextScorer | None = None,
) -> Iterator[PredictedImage | BadImage]:
    """Caption every item of a few images, in one pass of the backbone.

    A region that the model does not see (outside the image, or cut off by fit="crop") has an empty caption, which
    scores 0; an image that cannot be read does not keep the others from being described.

    Args:
        files: the file of each image, by image id.
        score: as in `DecodingOptions`.
        scorer: scores how well captions and images fit; None leaves that out.
    """
    opened = [_open(files[image.id]) for image in images]
    good = [(image, picture) for image, picture in zip(images, opened, strict=True) if isinstance(picture, Image.Image)]
    described = iter(_describe(captioner, good, score))
    for image, picture in zip(images, opened, strict=True):
        if not isinstance(picture, Image.Image):
            yield BadImage(image.id, str(picture))
        elif scorer is None:
            yield next(described)
        else:
            yield _with_image_text(next(described), image, picture, scorer)


def _open(file: Path) -> Image.Image | ImageError:
    try:
        return open_image(file)
    except ImageError as error:
        return error


def _describe(
    captioner: Captioner, opened: Sequence[tuple[AnnotatedImage, Image.Image]], score: Score
) -> list[PredictedImage]:
    if not opened:
        return []
    features = captioner.encode([picture for _, picture in opened])
    regions = [[item.region for item in image.items] for image, _ in opened]
    captions = captioner.describe(features, regions, score=score, on_bad="skip")
    is_inverse = score == "reference" and captioner.manifest.decoder.reference_score == "perplexity"
    return [
        PredictedImage(
            image.id,
            tuple(_prediction(item, caption, is_inverse) for item, caption in zip(image.items, own, strict=True)),
            image.annotations,
        )
        for (image, _), own in zip(opened, captions, strict=True)
    ]


def _prediction(item: Item, caption: Caption, is_inverse: bool) -> Prediction:
    """Return the prediction of an item; an inverse score is a perplexity, of which less is surer."""
    if caption.error is not None:
        return Prediction.missing(item)
    score = _surer(caption.score) if is_inverse else caption.score
    return Prediction(caption.text, score, item.references)


def _with_image_text(
    predicted: PredictedImage, image: AnnotatedImage, picture: Image.Image, scorer: ImageTextScorer
) -> PredictedImage:
    samples = [
        ImageTextSample(picture, item.region, clean_caption(prediction.caption), prediction.references)
        for item, prediction in zip(image.items, predicted.items, strict=True)
    ]
    values = zip(predicted.items, scorer.add(samples), strict=True)
    return replace(predicted, items=tuple(replace(prediction, image_text=own) for prediction, own in values))


def _surer(perplexity: float) -> float:
    """Return the inverse of a perplexity; 0 for a text of one token, which has none."""
    return 0.0 if math.isnan(perplexity) else 1 / perplexity
