"""How often captions of drawn demo scenes are right.

For boxes, masks and traces over one object: the share of captions that name its colour and shape, and of those that get
every attribute right and nothing else. For sets of two boxes: the share that name both objects. For backgrounds and
whole images, which have one right caption each: the share of exactly that.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from rich.console import Console
from rich.progress import track

from export.demo import scenes
from export.demo.scenes import Look, Scene
from runtime import Captioner, Mask, Region, WholeImage

_SCENES_AT_ONCE = 16


@dataclass(frozen=True)
class Question:
    """A region of a scene, what kind of region it is, and what its caption should say."""

    kind: str
    region: Region
    looks: tuple[Look, ...]
    caption: str


@dataclass(frozen=True)
class Score:
    """Captions of one kind of region.

    Attributes:
        asked: how many.
        named: share that name the right colour and shape of every object; None where there is none to name.
        exact: share that are right in every word.
    """

    asked: int
    named: float | None
    exact: float


def questions(scene: Scene, seed: int) -> Iterator[Question]:
    """Everything there is to ask of a scene."""
    rng = np.random.default_rng([seed, 2])
    for one in scene.objects:
        for kind, region in (("box", one.box), ("mask", one.mask), ("trace", one.trace(rng))):
            yield Question(kind, region, (one.look,), one.look.caption)
    for first, second in combinations(scene.objects, 2):
        if scenes.is_pair(first.look, second.look):
            looks = first.look, second.look
            yield Question("two boxes", scenes.pair_region(first, second), looks, scenes.pair_caption(*looks))
    yield Question("background mask", Mask(scene.background), (), scene.background_caption)
    yield Question("image, mean", WholeImage(pool="mean"), (), scene.caption)
    yield Question("image, cls", WholeImage(pool="cls"), (), scene.caption)


def names_objects(text: str, looks: Sequence[Look]) -> bool:
    """Whether a caption names exactly these objects by colour and shape."""
    said = sorted((look.get("colour", ""), look.get("shape", "")) for look in scenes.named_looks(text))
    return said == sorted((look.colour, look.shape) for look in looks)


def measure(captioner: Captioner, first_seed: int, count: int) -> dict[str, Score]:
    """The scores of each kind of region over ``count`` scenes."""
    named: dict[str, list[bool]] = defaultdict(list)
    exact: dict[str, list[bool]] = defaultdict(list)
    seeds = range(first_seed, first_seed + count)
    batches = [seeds[start : start + _SCENES_AT_ONCE] for start in range(0, count, _SCENES_AT_ONCE)]
    for batch in track(batches, "captioning", console=Console(stderr=True), transient=True):
        drawn = [scenes.draw_scene(seed) for seed in batch]
        asked = [list(questions(scene, seed)) for scene, seed in zip(drawn, batch, strict=True)]
        answers = captioner.caption([scene.image for scene in drawn], [[q.region for q in of] for of in asked])
        for question, answer in (
            (q, a) for of, said in zip(asked, answers, strict=True) for q, a in zip(of, said, strict=True)
        ):
            exact[question.kind].append(answer.text == question.caption)
            if question.looks:
                named[question.kind].append(names_objects(answer.text, question.looks))
    return {
        kind: Score(len(hits), float(np.mean(named[kind])) if kind in named else None, float(np.mean(hits)))
        for kind, hits in exact.items()
    }
