"""Captions of a bundle for the items of a ground truth, a few images at a time."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from benchmarks.scoring.ground_truth import AnnotatedImage, Item
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
    """

    caption: str
    score: float | None
    references: tuple[str, ...]


@dataclass(frozen=True)
class PredictedImage:
    """The captions of an image's items, in their order, by the image's id."""

    id: str
    items: tuple[Prediction, ...]

    @classmethod
    def without_captions(cls, image: AnnotatedImage) -> PredictedImage:
        """Return what stands in the place of the captions of an image that cannot be read."""
        return cls(image.id, tuple(Prediction("", None, item.references) for item in image.items))


@dataclass(frozen=True)
class BadImage:
    """An image that has no captions, by its id, and why."""

    id: str
    reason: str


def predict(
    captioner: Captioner, images: Sequence[AnnotatedImage], files: Mapping[str, Path], score: Score = "natural"
) -> Iterator[PredictedImage | BadImage]:
    """Caption every item of a few images, in one pass of the backbone.

    A region that the model does not see (outside the image, or cut off by fit="crop") has an empty caption, which
    scores 0; an image that cannot be read does not keep the others from being described.

    Args:
        files: the file of each image, by image id.
        score: as in `DecodingOptions`.
    """
    opened = [_open(files[image.id]) for image in images]
    good = [(image, picture) for image, picture in zip(images, opened, strict=True) if isinstance(picture, Image.Image)]
    described = iter(_describe(captioner, good, score))
    for image, picture in zip(images, opened, strict=True):
        yield next(described) if isinstance(picture, Image.Image) else BadImage(image.id, str(picture))


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
        )
        for (image, _), own in zip(opened, captions, strict=True)
    ]


def _prediction(item: Item, caption: Caption, is_inverse: bool) -> Prediction:
    """Return the prediction of an item; an inverse score is a perplexity, of which less is surer."""
    if caption.error is not None:
        return Prediction("", None, item.references)
    return Prediction(caption.text, _surer(caption.score) if is_inverse else caption.score, item.references)


def _surer(perplexity: float) -> float:
    """Return the inverse of a perplexity; 0 for a text of one token, which has none."""
    return 0.0 if math.isnan(perplexity) else 1 / perplexity
