"""The sentences of the demo's second decoder, and the entities that it may be told of.

The first decoder says "a small striped red triangle"; the second "There is a small red striped triangle."
"""

from __future__ import annotations

from export.demo import scenes
from export.demo.scenes import ATTRIBUTES, SHAPES

ENTITIES = tuple(sorted((*SHAPES, "background", "shape")))
"""The nouns of all captions, in the singular."""


def sentence_of(caption: str) -> str:
    """Return the sentence that says what a caption says."""
    looks = scenes.named_looks(caption)
    if all(len(look) == len(ATTRIBUTES) for look in looks):
        caption = " and ".join(f"a {look['size']} {look['colour']} {look['texture']} {look['shape']}" for look in looks)
    if "shapes" in caption:
        return f"There are {caption}."
    return f"This is {caption}." if "background" in caption else f"There is {caption}."


def entities_in(caption: str) -> tuple[str, ...]:
    """Return the entities that a caption names, in the order of ENTITIES."""
    words = [word.removesuffix("s") if word == "shapes" else word for word in caption.split()]
    return tuple(name for name in ENTITIES if name in words)
