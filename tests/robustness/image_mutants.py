"""Damaged images of every format that is opened: `python -m tests.robustness.image_mutants 20000 [SEED]`.

Each is refused with an ImageError in one line, or is an image; nothing warns.
"""

from __future__ import annotations

import io
import random
import sys
import warnings
from collections import Counter
from collections.abc import Iterator
from functools import lru_cache

import numpy as np
from PIL import Image, ImageCms, features

from runtime import ImageError
from runtime.image import open_image
from runtime.image.formats import FORMATS

MODES = {
    "JPEG": ("RGB", "L", "CMYK"),
    "PNG": ("RGB", "RGBA", "P", "L", "I;16", "1"),
    "TIFF": ("RGB", "F", "I;16", "CMYK"),
    "GIF": ("P",),
}
OPTIONS: dict[str, list[dict[str, object]]] = {
    "JPEG": [{}, {"progressive": True}],
    "TIFF": [{}, {"compression": "tiff_lzw"}, {"compression": "jpeg"}, {"compression": "tiff_adobe_deflate"}],
    "WEBP": [{}, {"lossless": True}],
    "PNG": [{}, {"optimize": True}],
}
INTERESTING = (0, 1, 0x7F, 0x80, 0xFF)


@lru_cache(maxsize=1)
def seeds() -> tuple[tuple[str, bytes], ...]:
    """Return small images of every format, mode and way of writing, with EXIF where the format has it."""
    noise = np.random.default_rng(0).integers(0, 256, (24, 32, 3), np.uint8)
    picture, found = Image.fromarray(noise), []
    picture.info["icc_profile"] = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    exif = picture.getexif()
    exif[0x0112], exif[0x010F], exif[0x0132] = 6, "maker", "2026:01:01 00:00:00"
    for name in FORMATS:
        for mode in MODES.get(name, ("RGB",)):
            for options in OPTIONS.get(name, [{}]):
                for extra in ({}, {"exif": exif}, {"save_all": True, "append_images": [picture.rotate(90)]}):
                    buffer = io.BytesIO()
                    try:
                        _in_mode(picture, mode).save(buffer, name, **options, **extra)
                    except (OSError, ValueError, KeyError, TypeError):  # this Pillow cannot write it so
                        continue
                    found.append((f"{name} {mode} {options}", buffer.getvalue()))
    return tuple(found)


def mutants(count: int, seed: int = 0) -> Iterator[tuple[str, bytes]]:
    """Yield that many damaged images, of each seed in turn."""
    chance = random.Random(seed)
    for number in range(count):
        name, data = seeds()[number % len(seeds())]
        yield name, mutate(data, chance)


def mutate(data: bytes, chance: random.Random) -> bytes:
    """Return data with a few bytes changed, cut out, doubled or cut off, mostly near the beginning."""
    changed = bytearray(data)
    for _ in range(chance.choice((1, 1, 2, 4, 16))):
        at = int(len(changed) * chance.random() ** chance.choice((1, 3)))
        match chance.randrange(7):
            case 0 | 1:
                changed[at : at + 1] = bytes([chance.randrange(256)])
            case 2:
                changed[at : at + 1] = bytes([chance.choice(INTERESTING)])
            case 3:
                changed[at : at + 4] = bytes(chance.choice(INTERESTING) for _ in range(4))
            case 4:
                del changed[at : at + chance.randrange(1, 9)]
            case 5:
                changed[at:at] = changed[at : at + chance.randrange(1, 33)]
            case 6:
                del changed[at:]
        if not changed:
            return b""
    return bytes(changed)


def check(data: bytes) -> str:
    """Open what may be an image; return "image" or "refused".

    Raises:
        AssertionError: it is neither, or something was warned of.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            opened = open_image(data)
        except ImageError as error:
            message = str(error)
        else:
            message = ""
    if message:
        assert "\n" not in message
        assert message.startswith("image bytes: ")
        return "refused"
    assert opened.mode == "RGB"
    assert 0 not in opened.size
    return "image"


def main(count: int, seed: int) -> int:
    """Try that many images; return how many ended otherwise than they may."""
    ends, bad = Counter[str](), 0
    for name, data in mutants(count, seed):
        try:
            ends[check(data)] += 1
        except Exception as error:
            bad += 1
            print(f"{name}: {type(error).__name__}: {error}")
    print(f"{count} images of {len(seeds())} seeds: {dict(ends)}, {bad} bad; AVIF: {features.check('avif')}")
    return bad


def _in_mode(picture: Image.Image, mode: str) -> Image.Image:
    if mode == "I;16":
        return Image.fromarray(np.asarray(picture.convert("L")).astype(np.uint16) * 257)
    if mode == "F":
        return Image.fromarray(np.asarray(picture.convert("L")).astype(np.float32) / 255)
    return picture.convert(mode)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0) > 0)
