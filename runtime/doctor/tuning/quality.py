"""What a combination costs in quality: how many captions stay the same, and how near the backbone's tokens stay."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch.nn.functional as F
from torch import Tensor

from runtime.captioner import Captioner
from runtime.doctor.tuning.budget import Budget
from runtime.doctor.tuning.pictures import regions_of
from runtime.image import ImageSource


@dataclass(frozen=True)
class Quality:
    """The nearness to what others are compared with.

    Attributes:
        agreement: the share of captions that are the same, in 0..1.
        cosine: of the backbone's tokens, the mean.
    """

    agreement: float
    cosine: float


K = TypeVar("K", bound=Hashable)


@dataclass(frozen=True, eq=False)
class QualityComparison(Generic[K]):
    """The quality of several captioners on the same images.

    Attributes:
        vectors: region vectors (R, D) of the last image, by the first captioner.
    """

    qualities: dict[K, Quality]
    images: int
    captions: int
    vectors: Tensor


@dataclass(frozen=True, eq=False)
class _Described:
    """An image as a captioner sees it: its tokens (T, D), and the captions of its regions."""

    tokens: Tensor
    texts: list[str]
    vectors: Tensor

    @classmethod
    def of(cls, captioner: Captioner, image: ImageSource) -> _Described:
        features = captioner.encode(image)
        regions = regions_of(features.image_whs[0])
        texts = [caption.text for caption in captioner.describe(features, regions)]
        return cls(features.tokens[0].float().cpu(), texts, captioner.vectors(features, regions))


def compare(
    captioners: Mapping[K, Captioner], images: Sequence[ImageSource], budget: Budget, say: Callable[[str], None]
) -> QualityComparison[K]:
    """Compare captioners with the first of them, on as many of the images as there is time for, and on one at least.

    Args:
        say: takes a line on what is done next.

    Raises:
        ImageError: an image cannot be read.
    """
    first, *_ = captioners
    same, cosines, captions, vectors = dict.fromkeys(captioners, 0), dict.fromkeys(captioners, 0.0), 0, None
    compared, last_seconds = 0, 0.0
    for image in images:
        if compared and not budget.allows(last_seconds):
            break
        say(f"comparing the captions of image {compared + 1} of {len(images)}")
        start = budget.clock()
        reference = _Described.of(captioners[first], image)
        for key, captioner in captioners.items():
            described = reference if key == first else _Described.of(captioner, image)
            same[key] += sum(ours == theirs for ours, theirs in zip(described.texts, reference.texts, strict=True))
            cosines[key] += float(F.cosine_similarity(described.tokens, reference.tokens, dim=-1).mean())
        compared, captions, vectors = compared + 1, captions + len(reference.texts), reference.vectors
        last_seconds = budget.clock() - start
    assert vectors is not None, "no images to compare"
    qualities = {key: Quality(same[key] / captions, cosines[key] / compared) for key in captioners}
    return QualityComparison(qualities, compared, captions, vectors)
