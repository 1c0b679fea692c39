"""A row of the results: a region in words, or why an image or a region has none."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from runtime.batch.image_names import as_unicode
from runtime.output.as_json import region_as_json
from runtime.results import Caption


@dataclass(frozen=True)
class CaptionRow:
    """A row of the results; None stands for what there is not.

    Attributes:
        image: the path of the image.
        index: the number of the region among those of its image; None if the image cannot be read.
        region: it, as `runtime.regions.to_dict` has it.
        text: the caption.
        score: its score, as `Caption.score`.
        id: the track or annotation that the region was given with.
        class_id: the number of its class.
        class_name: the name of its class.
        confidence: the detector's score.
        error: why there is no caption.
    """

    image: str
    index: int | None = None
    region: dict[str, Any] | None = None
    text: str | None = None
    score: float | None = None
    id: int | str | None = None
    class_id: int | None = None
    class_name: str | None = None
    confidence: float | None = None
    error: str | None = None

    @classmethod
    def of(cls, image: str, index: int, caption: Caption) -> CaptionRow:
        """Return the row of a caption."""
        said = caption.detection
        is_missing = caption.error is not None
        return cls(
            as_unicode(image),
            index,
            region_as_json(caption.region),
            None if is_missing else caption.text,
            None if is_missing or math.isnan(caption.score) else caption.score,
            *((None,) * 4 if said is None else (said.id, said.class_id, said.class_name, said.confidence)),
            error=caption.error,
        )

    @classmethod
    def missing(cls, image: str, error: str) -> CaptionRow:
        """Return the row of an image that has no captions."""
        return cls(as_unicode(image), error=as_unicode(error))
