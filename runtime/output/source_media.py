"""What a video file has besides its frames."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path


@dataclass(frozen=True)
class SourceMedia:
    """What an annotated video should know of its source.

    Attributes:
        rate: frames in a second; None where it is not known.
        has_audio: whether it has sound.
    """

    rate: Fraction | None = None
    has_audio: bool = False


def describe_source(source: str) -> SourceMedia:
    """Look into a video file; nothing is known of other sources: a camera or URL is not opened twice."""
    import av

    if not Path(source).is_file():
        return SourceMedia()
    try:
        with av.open(source) as container:
            return SourceMedia(container.streams.video[0].average_rate, bool(container.streams.audio))
    except (av.error.FFmpegError, OSError, ValueError, IndexError):  # whoever reads its frames says why
        return SourceMedia()
