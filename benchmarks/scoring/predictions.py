"""What a bundle says of annotated images: a caption for every item of a ground truth."""

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
class Answer:
    """The caption of one item.

    Attributes:
        image: the image's id.
        number: the item's place among the image's items.
        caption: what the bundle says; nothing where the model does not see the region.
        score: the decoder's probability of it; None where the model does not see the region.
        references: what it is to be compared with.
    """

    image: str
    number: int
    caption: str
    score: float | None
    references: tuple[str, ...]

    @property
    def item(self) -> str:
        return f"{self.image}/{self.number}"


def answer(captioner: Captioner, images: Sequence[AnnotatedImage], files: Mapping[str, Path]) -> list[Answer]:
    """Captions every item of the images, a few images at a time.

    A region that the model does not see (outside the image, or cut off by fit="crop") is no error here: it is answered
    with nothing, which scores 0.

    Args:
        files: the file of each image, by image id.

    Raises:
        ImageError: a file cannot be read as an image.
    """
    answers: list[Answer] = []
    starts = range(0, len(images), _IMAGES_AT_ONCE)
    for start in track(starts, "captioning", console=Console(stderr=True), transient=True):
        batch = images[start : start + _IMAGES_AT_ONCE]
        features = captioner.encode([files[image.id] for image in batch])
        answers += _answers(captioner, features, batch)
    return answers


def _answers(captioner: Captioner, features: FeatureMap, batch: Sequence[AnnotatedImage]) -> Iterator[Answer]:
    seen = [
        [_is_seen(item, canvas) for item in image.items] for image, canvas in zip(batch, features.canvases, strict=True)
    ]
    asked = [
        [item.region for item, is_seen in zip(image.items, own, strict=True) if is_seen]
        for image, own in zip(batch, seen, strict=True)
    ]
    for image, own, captions in zip(batch, seen, captioner.describe(features, asked), strict=True):
        left = iter(captions)
        for number, (item, is_seen) in enumerate(zip(image.items, own, strict=True)):
            caption = next(left) if is_seen else None
            text, score = (caption.text, caption.score) if caption else ("", None)
            yield Answer(image.id, number, text, score, item.references)


def _is_seen(item: Item, canvas: Canvas) -> bool:
    try:
        item.region.weights(canvas)
    except RegionError:
        return False
    return True
