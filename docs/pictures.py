"""Draws the pictures of the documents: each kind of region on the sample, its caption, and the weight of each patch.

Run `python docs/pictures.py FOLDER` after `make demo`, in its environment.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from runtime import (
    AttentionHead,
    Box,
    BoxSet,
    Caption,
    Captioner,
    Crop,
    FeatureMap,
    Fit,
    Mask,
    Patch,
    Point,
    Polygon,
    Region,
    Trace,
    WholeImage,
    draw_captions,
)

ROOT = Path(__file__).resolve().parent.parent
SAMPLE = ROOT / "export" / "demo" / "sample"
BUNDLE = ROOT / "engines" / "demo"
_SIDE, _GAP = 360, 8
_DIMMED = 0.25
"""Brightness of patches without weight, as a fraction of their own."""
_TRIANGLE = (276, 174, 507, 399)
_STAR = [(0.232, 0.119), (0.239, 0.142), (0.239, 0.182), (0.234, 0.209), (0.258, 0.206), (0.299, 0.205), (0.271, 0.158)]
_PAIR = [(90, 420, 321, 648), (453, 450, 582, 582)]


def regions() -> dict[str, Region]:
    """Return the regions, by the names of their pictures."""
    return {
        "box": Box(*_TRIANGLE),
        "box_gaussian": Box(*_TRIANGLE, pool="gaussian", variance=0.5),
        "box_attention": Box(*_TRIANGLE, pool="attention"),
        "box_set": BoxSet(_PAIR),
        "mask": Mask(np.asarray(Image.open(SAMPLE / "mask.png"))),
        "polygon": Polygon([(353, 178), (508, 352), (277, 399)]),
        "trace": Trace.normalized(_STAR),
        "point": Point(391, 330),
        "patch": Patch(7, 9),
        "crop": Crop(0, 160, 672, 672),
        "whole_mean": WholeImage("mean"),
        "whole_gaussian": WholeImage("gaussian", variance=0.5),
        "whole_attention": WholeImage("attention"),
        "attention_head": AttentionHead(0),
    }


def draw(folder: Path) -> None:
    """Write a picture of each region, and one of each fit, into ``folder``.

    Raises:
        BundleError: there is no demo bundle; `make demo` builds it.
    """
    folder.mkdir(exist_ok=True)
    scene = Image.open(SAMPLE / "scene.jpg")
    with Captioner.load(BUNDLE, "cpu") as captioner:
        features = captioner.encode(scene)
        for name, caption in zip(regions(), captioner.describe(features, list(regions().values())), strict=True):
            _beside(_outline(scene, caption), _weights(scene, features, caption)).save(folder / f"{name}.png")
    wide = scene.crop((0, 100, 672, 480))
    for fit in Fit:
        with Captioner.load(BUNDLE, "cpu", fit) as captioner:
            _view(wide, captioner.encode(wide)).save(folder / f"fit_{fit.value}.png")


def _outline(scene: Image.Image, caption: Caption) -> Image.Image:
    return draw_captions(scene, [caption]).resize((_SIDE, _SIDE), Image.Resampling.LANCZOS)


def _weights(scene: Image.Image, features: FeatureMap, caption: Caption) -> Image.Image:
    """Return the scene with the brightness of each patch as its weight."""
    (canvas,) = features.canvases
    assert caption.region is not None
    weights = caption.region.weights(canvas)[canvas.layout.num_global :].reshape(canvas.grid, canvas.grid)
    relative = weights / max(weights.max(), 1e-12)
    light = np.uint8(255 * (_DIMMED + (1 - _DIMMED) * relative))
    patches = Image.fromarray(light).resize((_SIDE, _SIDE), Image.Resampling.NEAREST)
    small = scene.resize((_SIDE, _SIDE), Image.Resampling.LANCZOS)
    picture = Image.composite(small, Image.new("RGB", small.size, "black"), patches)
    if not weights.any():
        _write(picture, "encoded separately")
    return picture


def _view(image: Image.Image, features: FeatureMap) -> Image.Image:
    """Return the image with the part that the backbone sees outlined, beside the square that it becomes."""
    (view,) = features.views
    corners = view.to_image(np.array([[0.0, 0.0], [view.size, view.size]]))
    outlined = image.copy()
    ImageDraw.Draw(outlined).rectangle([tuple(corner) for corner in corners.round() - [[0, 0], [1, 1]]], None, "red", 4)
    left, top, right, bottom = corners.round().astype(int).ravel()
    square = image.crop((left, top, right, bottom)).resize((_SIDE, _SIDE), Image.Resampling.LANCZOS)
    return _beside(outlined.resize((round(_SIDE * image.width / image.height), _SIDE)), square)


def _write(picture: Image.Image, text: str) -> None:
    pen, font = ImageDraw.Draw(picture), ImageFont.load_default(size=18)
    pen.text((picture.width / 2, picture.height / 2), text, anchor="mm", font=font, fill="white")


def _beside(left: Image.Image, right: Image.Image) -> Image.Image:
    both = Image.new("RGB", (left.width + _GAP + right.width, left.height), "white")
    both.paste(left, (0, 0))
    both.paste(right, (left.width + _GAP, 0))
    return both


if __name__ == "__main__":
    draw(Path(sys.argv[1]))
