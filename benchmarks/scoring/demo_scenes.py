"""Scores captions of drawn demo scenes, whose right captions are known.

For boxes, masks and traces over one object: the share of captions that name its colour and shape, and of those that get
every attribute right and nothing else. For sets of two boxes: the share that name both objects. For backgrounds and
whole images, which have one right caption each: the share of exactly that. A caption may be the phrase of the demo's
first decoder or the sentence of its second.
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
from export.demo.sentences import sentence_of
from runtime import Captioner, Mask, Region, WholeImage

_SCENES_AT_ONCE = 16


@dataclass(frozen=True)
class EvaluationCase:
    """A region of a scene and its right caption.

    Attributes:
        kind: "box", "mask", "trace", "two boxes", "background mask", "image, mean" or "image, cls".
        looks: the objects that the caption names; none for backgrounds and whole images.
    """

    kind: str
    region: Region
    looks: tuple[Look, ...]
    caption: str


@dataclass(frozen=True)
class Score:
    """Shares of right captions, for one kind of region.

    Attributes:
        asked: the number of captions.
        named: share that name the right colour and shape of every object; None where there is none to name.
        exact: share that are right in every word.
    """

    asked: int
    named: float | None
    exact: float


def evaluation_cases(scene: Scene, seed: int) -> Iterator[EvaluationCase]:
    """Yield every region of a scene that has a right caption; traces are drawn by ``seed``."""
    rng = np.random.default_rng([seed, 2])
    for one in scene.objects:
        for kind, region in (("box", one.box), ("mask", one.mask), ("trace", one.trace(rng))):
            yield EvaluationCase(kind, region, (one.look,), one.look.caption)
    for first, second in combinations(scene.objects, 2):
        if scenes.is_pair(first.look, second.look):
            pair, looks = scenes.pair_region(first, second), (first.look, second.look)
            yield EvaluationCase("two boxes", pair, looks, scenes.pair_caption(*looks))
    yield EvaluationCase("background mask", Mask(scene.background), (), scene.background_caption)
    yield EvaluationCase("image, mean", WholeImage(pool="mean"), (), scene.caption)
    yield EvaluationCase("image, cls", WholeImage(pool="cls"), (), scene.caption)


def names_objects(text: str, looks: Sequence[Look]) -> bool:
    """Return whether a caption names exactly these objects by colour and shape."""
    phrase = text.removesuffix(".")
    found = sorted((look.get("colour", ""), look.get("shape", "")) for look in scenes.named_looks(phrase))
    return found == sorted((look.colour, look.shape) for look in looks)


def score_scenes(captioner: Captioner, first_seed: int, count: int) -> dict[str, Score]:
    """Return the score of each kind of region over ``count`` scenes."""
    named: dict[str, list[bool]] = defaultdict(list)
    exact: dict[str, list[bool]] = defaultdict(list)
    for case, text in _caption_cases(captioner, range(first_seed, first_seed + count)):
        exact[case.kind].append(text in (case.caption, sentence_of(case.caption)))
        if case.looks:
            named[case.kind].append(names_objects(text, case.looks))
    return {
        kind: Score(len(hits), float(np.mean(named[kind])) if kind in named else None, float(np.mean(hits)))
        for kind, hits in exact.items()
    }


def _caption_cases(captioner: Captioner, seeds: range) -> Iterator[tuple[EvaluationCase, str]]:
    """Yield every case of the scenes of ``seeds`` with its caption, a few scenes at a time."""
    starts = range(0, len(seeds), _SCENES_AT_ONCE)
    for start in track(starts, "captioning", console=Console(stderr=True), transient=True):
        batch = seeds[start : start + _SCENES_AT_ONCE]
        drawn = [scenes.draw_scene(seed) for seed in batch]
        cases = [list(evaluation_cases(scene, seed)) for scene, seed in zip(drawn, batch, strict=True)]
        regions = [[case.region for case in scene_cases] for scene_cases in cases]
        captions = captioner.caption([scene.image for scene in drawn], regions)
        for scene_cases, scene_captions in zip(cases, captions, strict=True):
            for case, caption in zip(scene_cases, scene_captions, strict=True):
                yield case, caption.text
