"""A region as it was given: with what its detector says of it, or with the reason why there is none."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from runtime.errors import RegionError
from runtime.regions import checks
from runtime.regions.canvas import Region


@dataclass(frozen=True)
class Detection:
    """What a detector, a tracker or a data set says of a region; None for what it does not say.

    Attributes:
        id: the number of its track, or the id of its annotation.
        class_id: the number of its class.
        class_name: the name of its class.
        confidence: the detector's score, in its own range.

    Example:
        >>> found = {"boxes": [[276, 174, 507, 399]], "labels": ["triangle"], "scores": [0.9]}
        >>> captioner.caption(scene, found)[0].detection
        Detection(id=None, class_id=None, class_name='triangle', confidence=0.9)
    """

    id: int | str | None = None
    class_id: int | None = None
    class_name: str | None = None
    confidence: float | None = None


@dataclass(frozen=True, eq=False)
class RegionRow:
    """One region of an image as it was given.

    Attributes:
        region: the region, or why there is none.
        detection: what was said of it; None where nothing was.
    """

    region: Region | RegionError
    detection: Detection | None = None

    @classmethod
    def made(cls, make: Callable[[], Region], **said: object) -> RegionRow:
        """Return the row of the region that a function makes.

        Args:
            said: the arguments of `detection_of`.
        """
        detection = None
        try:
            detection = detection_of(**said)
            return cls(make(), detection)
        except RegionError as error:
            return cls(error, detection)


def detection_of(
    id: object = None, class_id: object = None, class_name: object = None, confidence: object = None
) -> Detection | None:
    """Return the detection of values of any library's types; None if all of them are None.

    Raises:
        RegionError: a number is none, or not finite.
    """
    if id is class_id is class_name is confidence is None:
        return None
    return Detection(
        id if id is None or isinstance(id, str) else checks.whole_or_negative("id", id),
        None if class_id is None else checks.whole_or_negative("class id", class_id),
        None if class_name is None else str(class_name),
        None if confidence is None else checks.number("confidence", confidence),
    )
