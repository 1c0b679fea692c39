"""Captions of a bundle for every item of a ground truth."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import track

from benchmarks.scoring.ground_truth import AnnotatedImage, Item
from runtime import Captioner, FeatureMap, RegionError
from runtime.regions import Canvas

_IMAGES_AT_ONCE = 8


@dataclass(frozen=True)
class Prediction:
    """The caption of one item.

    Attributes:
        image: the image's id.
        number: the index of the item among the image's items.
        caption: empty where the model does not see the region.
        score: the decoder's probability of the caption; None where the model does not see the region.
        references: the captions that it is compared with.
    """

    image: str
    number: int
    caption: str
    score: float | None
    references: tuple[str, ...]

    @property
    def item(self) -> str:
        """The item's name among all items of a ground truth."""
        return f"{self.image}/{self.number}"


def predict(captioner: Captioner, images: Sequence[AnnotatedImage], files: Mapping[str, Path]) -> list[Prediction]:
    """Caption every item of the images, a few images at a time.

    A region that the model does not see (outside the image, or cut off by fit="crop") is no error here: its caption is
    empty, which scores 0.

    Args:
        files: the file of each image, by image id.

    Raises:
        ImageError: a file cannot be read as an image.
    """
    predictions: list[Prediction] = []
    starts = range(0, len(images), _IMAGES_AT_ONCE)
    for start in track(starts, "captioning", console=Console(stderr=True), transient=True):
        batch = images[start : start + _IMAGES_AT_ONCE]
        features = captioner.encode([files[image.id] for image in batch])
        predictions += _predict_batch(captioner, features, batch)
    return predictions


def _predict_batch(captioner: Captioner, features: FeatureMap, batch: Sequence[AnnotatedImage]) -> Iterator[Prediction]:
    visible = [
        [_is_visible(item, canvas) for item in image.items]
        for image, canvas in zip(batch, features.canvases, strict=True)
    ]
    regions = [
        [item.region for item, is_visible in zip(image.items, flags, strict=True) if is_visible]
        for image, flags in zip(batch, visible, strict=True)
    ]
    for image, flags, captions in zip(batch, visible, captioner.describe(features, regions), strict=True):
        remaining = iter(captions)
        for number, (item, is_visible) in enumerate(zip(image.items, flags, strict=True)):
            caption = next(remaining) if is_visible else None
            text, score = (caption.text, caption.score) if caption else ("", None)
            yield Prediction(image.id, number, text, score, item.references)


def _is_visible(item: Item, canvas: Canvas) -> bool:
    try:
        item.region.weights(canvas)
    except RegionError:
        return False
    return True
