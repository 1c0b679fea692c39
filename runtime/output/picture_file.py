"""Writes pictures in the formats that Pillow has."""

from __future__ import annotations

import io

from PIL import Image

from runtime.errors import ImageError
from runtime.system.outputs import Output

_STREAMED_FORMAT = "PNG"
"""The format for stdout, and for pipes and devices without an ending."""


def picture_format(output: Output) -> str:
    """Return Pillow's name of the format for an output, once a small picture could be written in it.

    Raises:
        ImageError: Pillow has no format for the ending of its name, or cannot write it.
        PatchcaptionError: it cannot be written.
    """
    name = Image.registered_extensions().get(output.suffix)
    if name is None and not output.suffix and not output.is_file:
        return _STREAMED_FORMAT
    if name is None:
        raise ImageError(
            f"{output}: expected the suffix of an image file, .png or .jpg for example, got {output.suffix!r}"
        )
    _encode(Image.new("RGB", (16, 16)), name, output)
    return name


def save_picture(picture: Image.Image, output: Output) -> None:
    """Write a picture (RGB) whole or not at all, in the format of its name's ending.

    Raises:
        ImageError: the format does not take it.
        PatchcaptionError: it cannot be written.
        BrokenPipeError: the reader of a pipe has gone.
    """
    output.write(_encode(picture, picture_format(output), output))


def _encode(picture: Image.Image, format_name: str, output: Output) -> bytes:
    buffer = io.BytesIO()
    try:
        picture.save(buffer, format_name)
    except Exception as error:  # each format has its own
        raise ImageError(
            f"{output}: Pillow cannot write this picture as {format_name}: {error}; take .png or .jpg"
        ) from None
    return buffer.getvalue()
