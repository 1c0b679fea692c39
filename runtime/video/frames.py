"""A frame, and what every source of frames is."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from fractions import Fraction
from typing import Protocol

from runtime.image import ImageSource
from runtime.options import check_number
from runtime.video.sound import Sound

_MAX_SECONDS = 1e12
"""More than any clock's; NaN and infinity have no place in a file."""


@dataclass(frozen=True, eq=False)
class Frame:
    """One image of a stream.

    Attributes:
        number: its index in the source, from 0; dropped and undecodable frames count too, and those before ``start_s``.
        seconds: its time from the start of the source, also after ``start_s``; None where the source does not give it.
        image: anything that `Captioner.encode` takes.

    Raises:
        OptionError: the number is no whole number from 0 on, or the time is not finite.

    Example:
        >>> frames = [Frame(number, number / 30, scene) for number in range(3)]
        >>> [result.frame.seconds for result in captioner.stream(frames, [WholeImage()])]
        [0.0, 0.03333333333333333, 0.06666666666666667]
    """

    number: int
    seconds: float | None
    image: ImageSource

    def __post_init__(self) -> None:
        check_number("Frame number", self.number, 0, whole=True)
        if self.seconds is not None:
            check_number("Frame seconds", self.seconds, -_MAX_SECONDS, _MAX_SECONDS)


class Source(Protocol):
    """A source of frames."""

    @property
    def is_live(self) -> bool:
        """Whether it goes on while it is not read: a camera, or a URL without a known length."""
        ...

    @property
    def frame_count(self) -> int | None:
        """How many frames there are, about so many where a part of a video is read; None where that is not known."""
        ...

    @property
    def rate(self) -> Fraction | None:
        """Frames in a second, on average; None where that is not known."""
        ...

    @property
    def has_sound(self) -> bool:
        """Whether there is sound beside the frames."""
        ...

    @property
    def sound(self) -> Sound | None:
        """The sound that goes with the frames; None where there is none, or it cannot be read beside them."""
        ...

    @property
    def decode_errors(self) -> int:
        """How many frames could not be decoded so far."""
        ...

    @property
    def reconnects(self) -> int:
        """How often a lost camera or URL was opened again so far."""
        ...

    def frames(self) -> Generator[Frame, None, None]:
        """Yield all frames, in order; closing the iterator closes the source."""
        ...

    def stop(self) -> None:
        """Let `frames` end soon; from any thread."""
        ...
