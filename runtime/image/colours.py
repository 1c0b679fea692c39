"""Images of any mode as upright RGB of 8 bits, as other viewers show them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from PIL import Image

from runtime.errors import ImageError

_ORIENTATION = 0x0112
"""EXIF's tag."""
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def upright_rgb(image: Image.Image, name: str) -> Image.Image:
    """Return an image as upright 8-bit RGB, what is transparent over white.

    Raises:
        ImageError: it has no pixel, or numbers of which nobody can say how bright they are.
    """
    if 0 in image.size:
        raise ImageError(f"{name}: expected at least one pixel, got {image.width} x {image.height}")
    turn = _TURNS.get(_orientation(image))
    rgb = _over_white(_with_8_bits(image, name)).convert("RGB")
    upright = rgb if turn is None else rgb.transpose(turn)
    upright.info = {}  # without the orientation, which no longer holds, and the transparency
    return upright


def _orientation(image: Image.Image) -> int:
    """Return EXIF's orientation; that of an image whose EXIF is damaged is the one that it is stored in."""
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # of whatever kind: the pixels are none the worse for it
        return 1


def _with_8_bits(image: Image.Image, name: str) -> Image.Image:
    if image.mode == "F":
        return Image.fromarray(_from_floats(np.asarray(image), name))
    if image.mode == "I" or image.mode.startswith("I;16"):
        return Image.fromarray(_from_16_bits(np.asarray(image), name))
    return image


def _from_16_bits(values: npt.NDArray[np.integer], name: str) -> npt.NDArray[np.uint8]:
    """Return 16 bits scaled to 8: 65535 is 255."""
    least, most = int(values.min()), int(values.max())
    if least < 0 or most > 0xFFFF:
        raise ImageError(f"{name}: expected whole numbers of 16 bits, 0 to 65535, got {least} to {most}; scale them")
    return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)


def _from_floats(values: npt.NDArray[np.floating], name: str) -> npt.NDArray[np.uint8]:
    """Return floats in 0..1 scaled to 0..255, and whole numbers up to 255 as they are."""
    least, most = float(values.min()), float(values.max())
    if 0 <= least <= most <= 1:
        return (values * 255 + 0.5).astype(np.uint8)
    if 0 <= least <= most <= 255 and (values == np.floor(values)).all():
        return values.astype(np.uint8)
    raise ImageError(f"{name}: expected floats in 0..1, got {least:g} to {most:g}; scale them")


def _over_white(image: Image.Image) -> Image.Image:
    if not image.has_transparency_data:
        return image
    rgba = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
    background = Image.new("RGBA", rgba.size, "white")
    background.alpha_composite(rgba)
    return background
