"""The public errors: every message says what is wrong, where, what was expected, what came, and the fix."""

from __future__ import annotations

_MOST_CHARACTERS = 2000


class PatchcaptionError(Exception):
    """Base of every error that this project raises on purpose.

    A message that quotes what is very long, as names and values of files can be, is cut in its middle.

    Example:
        >>> try:
        ...     captioner.caption("nowhere.jpg", [WholeImage()])
        ... except PatchcaptionError as error:
        ...     print(error)
        nowhere.jpg: no such file
    """

    def __init__(self, *arguments: object) -> None:
        super().__init__(*(_shortened(one) if isinstance(one, str) else one for one in arguments))


def _shortened(text: str) -> str:
    """Return a text of at most so many characters as a message has: its beginning, and its end with the fix."""
    if len(text) <= _MOST_CHARACTERS:
        return text
    kept = _MOST_CHARACTERS // 2 - 3
    return f"{text[:kept]} ... {text[-kept:]}"


class OptionError(PatchcaptionError, ValueError):
    """An option without such a value, of another type, or that there is not.

    Example:
        >>> captioner.caption(scene, [WholeImage()], beams=0)
        Traceback (most recent call last):
            ...
        runtime.errors.OptionError: beams: expected a whole number from 1 to 256, got 0
    """


class ImageError(PatchcaptionError, ValueError):
    """An image that cannot be read or has a wrong type or shape.

    Example:
        >>> captioner.encode(np.zeros((4, 4)))
        Traceback (most recent call last):
            ...
        runtime.errors.ImageError: image array: expected dtype uint8 (0..255), got float64
    """


class RegionError(PatchcaptionError, ValueError):
    """A region that has no place on its image: not finite, inverted, outside, empty or wrongly sized.

    Example:
        >>> captioner.caption(scene, [Point(9000, 10)])
        Traceback (most recent call last):
            ...
        runtime.errors.RegionError: region 0: Point(x=9000.0, y=10.0) lies outside the image of 672 x 672 pixels
    """


class BundleError(PatchcaptionError):
    """A bundle that is missing, incomplete, altered or of another schema.

    Example:
        >>> Captioner.load("engines/nowhere")
        Traceback (most recent call last):
            ...
        runtime.errors.BundleError: engines/nowhere: no bundle there (manifest.json is missing); build one: patch...
    """


class BackendError(PatchcaptionError):
    """A backend that is unknown or not usable on this machine.

    Example:
        >>> Captioner.load("engines/demo", backend="abacus")
        Traceback (most recent call last):
            ...
        runtime.errors.BackendError: backend 'abacus': expected one of 'auto', 'cpu', 'openvino', ...
    """


class VideoError(PatchcaptionError):
    """A source of frames that cannot be opened, has no frames, or is lost.

    Example:
        >>> captioner.stream("nowhere.mp4", [WholeImage()])
        Traceback (most recent call last):
            ...
        runtime.errors.VideoError: nowhere.mp4: no such file or folder
    """


class ProcessBoundError(PatchcaptionError, TypeError):
    """An object that belongs to one process was to be pickled, copied or sent to another: a captioner, or a part of it.

    Example:
        >>> pickle.dumps(captioner)
        Traceback (most recent call last):
            ...
        runtime.errors.ProcessBoundError: a Captioner cannot be pickled, copied or sent to another process, as it ...
    """
