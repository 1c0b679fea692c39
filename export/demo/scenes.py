"""The demo's world: scenes of drawn objects, the regions on them, and the captions that describe them.

A scene is drawn from a seed alone: seeds below `HELD_OUT_SEED` are for training, seeds from there on are held out.

Shapes: h rows and w columns of a window of the image.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace
from functools import cache
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from runtime.regions import Box, BoxSet, Mask, Trace

Array: TypeAlias = npt.NDArray[np.float64]
Window: TypeAlias = tuple[slice, slice]

SIZE = 224
HELD_OUT_SEED = 2**31
_NUM_SAMPLES = 16

SHAPES = ("circle", "square", "triangle", "star", "ring", "cross", "heart", "moon")
COLOURS = {
    "red": (214, 40, 40),
    "orange": (244, 140, 20),
    "yellow": (242, 222, 50),
    "green": (50, 165, 65),
    "cyan": (50, 200, 210),
    "blue": (40, 75, 215),
    "purple": (135, 55, 185),
    "pink": (245, 130, 195),
}
RADII = {"small": (21.0, 26.0), "large": (37.0, 48.0)}
TEXTURES = ("solid", "striped", "dotted")
ATTRIBUTES = {"colour": tuple(COLOURS), "shape": SHAPES, "texture": TEXTURES, "size": tuple(RADII)}
TONES = {
    "white": (232, 232, 228),
    "grey": (128, 130, 134),
    "black": (30, 30, 34),
    "brown": (112, 78, 50),
    "beige": (205, 186, 150),
}
BACKDROPS = ("plain", "shaded", "speckled", "checked")
COUNTS = {2: "two", 3: "three", 4: "four", 5: "five", 6: "six"}


@dataclass(frozen=True, order=True)
class Look:
    """The attributes of an object, as captions name them."""

    colour: str
    shape: str
    texture: str
    size: str

    @property
    def caption(self) -> str:
        """The caption of the object alone."""
        return f"a {self.size} {self.texture} {self.colour} {self.shape}"


@dataclass(frozen=True, eq=False)
class SceneObject:
    """A drawn object.

    Attributes:
        look: its attributes.
        visible: (SIZE, SIZE) bool, its pixels that no object in front of it hides.
    """

    look: Look
    visible: npt.NDArray[np.bool_]

    @property
    def box(self) -> Box:
        """The tight box around the visible pixels."""
        rows, columns = np.flatnonzero(self.visible.any(1)), np.flatnonzero(self.visible.any(0))
        return Box(float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1))

    @property
    def mask(self) -> Mask:
        """The visible pixels."""
        return Mask(self.visible)

    def trace(self, rng: np.random.Generator) -> Trace:
        """Return a scribble over the object as a hand with a mouse makes it: points inside, each near the previous."""
        inside = np.argwhere(self.visible)
        points = inside[rng.integers(len(inside), size=rng.integers(12, 28))].astype(float)
        path = [points[0]]
        remaining = list(points[1:])
        while remaining:
            nearest = min(range(len(remaining)), key=lambda i: float(np.abs(remaining[i] - path[-1]).sum()))
            path.append(remaining.pop(nearest))
        xy = np.array(path)[:, ::-1] + 0.5 + rng.uniform(-1.5, 1.5, (len(path), 2))
        return Trace(np.clip(xy, 0, SIZE).tolist())


@dataclass(frozen=True, eq=False)
class Scene:
    """A drawn image with its ground truth.

    Attributes:
        image: (SIZE, SIZE, 3) uint8 RGB.
        objects: the objects from back to front.
        backdrop: the kind of background, one of BACKDROPS.
        tone: the background's colour, one of TONES.
    """

    image: npt.NDArray[np.uint8]
    objects: tuple[SceneObject, ...]
    backdrop: str
    tone: str

    @property
    def caption(self) -> str:
        """The caption of the whole image."""
        return f"{COUNTS[len(self.objects)]} shapes on a {self.backdrop} {self.tone} background"

    @property
    def background(self) -> npt.NDArray[np.bool_]:
        """The pixels (SIZE, SIZE) where no object is visible."""
        return ~np.logical_or.reduce([item.visible for item in self.objects])

    @property
    def background_caption(self) -> str:
        """The caption of the background alone."""
        return f"a {self.backdrop} {self.tone} background"


def draw_scene(seed: int) -> Scene:
    """Draw the scene of a seed: two to six objects that may overlap, each mostly visible."""
    rng = np.random.default_rng(seed)
    backdrop, tone = str(rng.choice(BACKDROPS)), str(rng.choice(list(TONES)))
    image = _paint_backdrop(backdrop, TONES[tone], rng)
    looks: list[Look] = []
    visible: list[npt.NDArray[np.bool_]] = []
    count = int(rng.integers(2, 7))
    for _ in range(200):
        if len(looks) == count:
            break
        look = Look(
            colour=str(rng.choice(list(COLOURS))),
            shape=str(rng.choice(SHAPES)),
            texture=str(rng.choice(TEXTURES)),
            size=str(rng.choice(list(RADII))),
        )
        radius = rng.uniform(*RADII[look.size])
        centre = rng.uniform(radius * 0.9, SIZE - radius * 0.9, 2)
        window, coverage = _rasterize(look.shape, radius, centre, rng.uniform(-15, 15))
        covered = np.zeros((SIZE, SIZE), np.bool_)
        covered[window] = coverage > 0.5
        if not _fits(covered, visible):
            continue
        image[window] += (_paint(look, window, centre, rng) - image[window]) * coverage[:, :, None]
        visible = [pixels & ~covered for pixels in visible] + [covered]
        looks.append(look)
    objects = tuple(SceneObject(look, pixels) for look, pixels in zip(looks, visible, strict=True))
    return Scene(np.clip(np.rint(image), 0, 255).astype(np.uint8), objects, backdrop, tone)


def sample_images() -> list[npt.NDArray[np.uint8]]:
    """Return images (SIZE, SIZE, 3) of some scenes, as many as calibration needs."""
    return [draw_scene(seed).image for seed in range(_NUM_SAMPLES)]


def pair_caption(first: Look, second: Look) -> str:
    """Return the caption of two objects, which is the same in either order."""
    looks = sorted([first, second], key=_pair_order)
    return " and ".join(f"{'an' if look.colour == 'orange' else 'a'} {look.colour} {look.shape}" for look in looks)


def swapped_pair(caption: str) -> str:
    """Return the caption of a pair with the two shapes exchanged; return captions of other kinds unchanged."""
    looks = named_looks(caption)
    if len(looks) != 2:
        return caption
    first, second = (Look(look["colour"], look["shape"], "solid", "small") for look in looks)
    return pair_caption(replace(first, shape=second.shape), replace(second, shape=first.shape))


def is_pair(first: Look, second: Look) -> bool:
    """Return whether a caption can tell the two apart: to the mean of their patches, two red circles are one."""
    return (first.colour, first.shape) != (second.colour, second.shape)


def pair_region(first: SceneObject, second: SceneObject) -> BoxSet:
    """Return the region of two objects, the set of their boxes."""
    return BoxSet([first.box, second.box])


@cache
def all_captions() -> tuple[str, ...]:
    """Return every caption of this world: the rows of the memory bank, and the texts that the decoder is trained on."""
    looks = [
        Look(colour, shape, texture, size)
        for size, texture, colour, shape in itertools.product(RADII, TEXTURES, COLOURS, SHAPES)
    ]
    plain = [Look(colour, shape, "solid", "small") for colour, shape in itertools.product(COLOURS, SHAPES)]
    singles = [look.caption for look in looks]
    pairs = [pair_caption(first, second) for first, second in itertools.combinations(plain, 2)]
    grounds = [f"{backdrop} {tone} background" for backdrop, tone in itertools.product(BACKDROPS, TONES)]
    scenes = [f"{count} shapes on a {ground}" for count, ground in itertools.product(COUNTS.values(), grounds)]
    return (*singles, *pairs, *(f"a {ground}" for ground in grounds), *scenes)


def named_looks(text: str) -> list[dict[str, str]]:
    """Return the named attributes of each object in a caption: [{"colour": "red", "shape": "circle"}, ...]."""
    return [
        {name: word for word in phrase.split() for name, values in ATTRIBUTES.items() if word in values}
        for phrase in text.split(" and ")
    ]


def _pair_order(look: Look) -> tuple[int, int]:
    """Return the sort key of an object in a pair's caption."""
    return list(COLOURS).index(look.colour), SHAPES.index(look.shape)


def _fits(covered: npt.NDArray[np.bool_], visible: list[npt.NDArray[np.bool_]]) -> bool:
    """Return whether a new object may lie on the others: each box must still show mostly its own object."""
    after = [pixels & ~covered for pixels in visible]
    for before, pixels in zip(visible, after, strict=True):
        if pixels.sum() < 0.75 * before.sum():
            return False
    everything = [*after, covered]
    for own in everything:
        rows, columns = np.flatnonzero(own.any(1)), np.flatnonzero(own.any(0))
        window = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        others = sum(int(other[window].sum()) for other in everything if other is not own)
        if others > 0.25 * own.sum():
            return False
    return True


def _outline(shape: str) -> list[tuple[float, float]]:
    """Return the outline of a shape, near the unit circle; ring and moon are circles until a circle is cut out."""
    if shape == "square":
        return [(-0.8, -0.8), (0.8, -0.8), (0.8, 0.8), (-0.8, 0.8)]
    if shape == "triangle":
        return [(math.sin(a) * 1.1, -math.cos(a) * 1.1 + 0.15) for a in (0, 2 * math.pi / 3, 4 * math.pi / 3)]
    if shape == "star":
        radii = (1.1, 0.45) * 5
        return [(r * math.sin(i * math.pi / 5), -r * math.cos(i * math.pi / 5)) for i, r in enumerate(radii)]
    if shape == "cross":
        arm = 0.32
        quarter = [(-arm, -1.0), (arm, -1.0), (arm, -arm)]
        turns = [(1, 0, 0, 1), (0, -1, 1, 0), (-1, 0, 0, -1), (0, 1, -1, 0)]
        return [(a * x + b * y, c * x + d * y) for a, b, c, d in turns for x, y in quarter]
    angles = [i * math.pi / 40 for i in range(80)]
    if shape == "heart":
        return [
            (
                16 * math.sin(t) ** 3 / 16,
                -(13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)) / 16,
            )
            for t in angles
        ]
    return [(math.cos(t), math.sin(t)) for t in angles]


_CUT_OUT = {"ring": (0.0, 0.0, 0.55), "moon": (0.5, -0.1, 0.8)}
"""The circle that is cut out of a shape, as (x, y, radius) on the scale of its outline."""


def _rasterize(shape: str, radius: float, centre: Array, rotation_degrees: float) -> tuple[Window, Array]:
    """Return the window of the image that a shape lies in, and the share of each pixel (h, w) that it covers there.

    The shape is drawn at four times the size and averaged.
    """
    oversampling = 4
    sine, cosine = math.sin(math.radians(rotation_degrees)), math.cos(math.radians(rotation_degrees))
    half_side = int(radius * 1.2) + 2
    left, top = int(centre[0]) - half_side, int(centre[1]) - half_side

    def to_canvas(x: float, y: float) -> tuple[float, float]:
        return (
            (centre[0] - left + radius * (cosine * x - sine * y)) * oversampling,
            (centre[1] - top + radius * (sine * x + cosine * y)) * oversampling,
        )

    canvas_side = 2 * half_side * oversampling
    canvas = Image.new("L", (canvas_side, canvas_side))
    pen = ImageDraw.Draw(canvas)
    pen.polygon([to_canvas(x, y) for x, y in _outline(shape)], fill=255)
    if shape in _CUT_OUT:
        x, y, cut_radius = _CUT_OUT[shape]
        (cx, cy), r = to_canvas(x, y), cut_radius * radius * oversampling
        pen.ellipse((cx - r, cy - r, cx + r, cy + r), fill=0)
    coverage = np.asarray(canvas.resize((2 * half_side, 2 * half_side), Image.Resampling.BOX), np.float64) / 255
    first_row, first_column = max(-top, 0), max(-left, 0)
    coverage = coverage[first_row : SIZE - top, first_column : SIZE - left]
    rows = slice(top + first_row, top + first_row + coverage.shape[0])
    return (rows, slice(left + first_column, left + first_column + coverage.shape[1])), coverage


def _paint(look: Look, window: Window, centre: Array, rng: np.random.Generator) -> Array:
    """Return an object's paint over a window (h, w, 3): its colour, lightened where its texture has stripes or dots."""
    y, x = np.mgrid[window]
    colour = np.array(COLOURS[look.colour]) + rng.uniform(-14, 14, 3)
    angle, period = rng.uniform(0, math.pi), rng.uniform(8.5, 11.5)
    u = ((x - centre[0]) * math.cos(angle) + (y - centre[1]) * math.sin(angle)) / period
    v = ((y - centre[1]) * math.cos(angle) - (x - centre[0]) * math.sin(angle)) / period
    if look.texture == "striped":
        lightness = np.clip((np.abs(u - np.rint(u)) - 0.25) * period + 0.5, 0, 1)
    elif look.texture == "dotted":
        lightness = np.clip((0.3 - np.hypot(u - np.rint(u), v - np.rint(v))) * period + 0.5, 0, 1)
    else:
        lightness = np.zeros(x.shape)
    return colour + (255 - colour) * 0.7 * lightness[:, :, None]


def _paint_backdrop(kind: str, tone: tuple[int, int, int], rng: np.random.Generator) -> Array:
    """Return a painted background (SIZE, SIZE, 3)."""
    base = np.array(tone) + rng.uniform(-8, 8, 3)
    ground = np.tile(base, (SIZE, SIZE, 1))
    y, x = np.mgrid[0:SIZE, 0:SIZE] / SIZE - 0.5
    if kind == "shaded":
        angle = rng.uniform(0, 2 * math.pi)
        ground += ((x * math.cos(angle) + y * math.sin(angle)) * 70)[:, :, None]
    elif kind == "speckled":
        ground += rng.normal(0, 16, (SIZE, SIZE, 1))
    elif kind == "checked":
        period = rng.uniform(10, 18) / SIZE
        ground += ((np.floor(x / period) + np.floor(y / period)) % 2 * 30 - 15)[:, :, None]
    return ground + rng.normal(0, 2, (SIZE, SIZE, 1))
