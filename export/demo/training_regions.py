"""The training data of the backbone and the text encoder: drawn scenes with regions and their captions.

Shapes: B scenes, S image side, R regions of a scene, T tokens, N patches.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from export.demo import scenes
from export.demo.auxiliary_tasks import attribute_ids, patch_targets
from export.demo.model_config import BACKBONE_CONFIG
from export.demo.scenes import Look, Scene, SceneObject
from export.demo.training_plan import DemoTrainingPlan, Phase
from runtime.image import Fit, View
from runtime.regions import Box, Canvas, Mask, Region, WholeImage, weight_rows


def draw_batches(phase: Phase, plan: DemoTrainingPlan) -> Iterator[dict[str, Tensor]]:
    """Yield a batch for every step of a phase.

    All scenes are drawn first, by two processes, and then repeated in random order: drawing them beside the training
    would hold up each of its parallel loops.
    """
    loader = DataLoader(SceneRegions(plan.seed, phase), plan.scenes_per_step, num_workers=2)
    batches = [{name: value.clone() for name, value in batch.items()} for batch in loader]  # out of shared memory
    generator = torch.Generator().manual_seed(plan.seed)
    for step in range(phase.steps):
        if step % len(batches) == 0:
            order = torch.randperm(len(batches), generator=generator).tolist()
        yield batches[order[step % len(batches)]]


class SceneRegions(Dataset[dict[str, Tensor]]):
    """A phase's scenes, each as its pixels, regions and targets.

    Items:
        pixels: (S, S, 3) uint8.
        weights: (R, T) the regions' weights over tokens.
        captions: (R) index of each region's caption in `scenes.all_captions`.
        attributes: (R, 4) attributes of regions over one object, -1 for the others.
        patch_attributes, patch_cells, patch_positions: as `patch_targets` returns them, in phases with auxiliary heads.
    """

    def __init__(self, seed: int, phase: Phase) -> None:
        self.seed, self.phase = seed, phase
        self.caption_index = {caption: index for index, caption in enumerate(scenes.all_captions())}
        view = View.of((scenes.SIZE, scenes.SIZE), BACKBONE_CONFIG.image_size, Fit.STRETCH)
        self.canvas = Canvas(view, BACKBONE_CONFIG.token_layout)

    def __len__(self) -> int:
        return self.phase.scenes

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        scene_seed = (self.seed * 1_000_003 + self.phase.first_scene + index) % scenes.HELD_OUT_SEED
        scene, rng = scenes.draw_scene(scene_seed), np.random.default_rng([scene_seed, 1])
        regions = sample_regions(scene, self.phase, rng)
        return {
            "pixels": torch.from_numpy(scene.image),
            "weights": weight_rows([item.region for item in regions], self.canvas),
            "captions": torch.tensor([self.caption_index[item.caption] for item in regions]),
            "attributes": torch.tensor([attribute_ids(item.look) for item in regions]),
            **(patch_targets(scene, self.canvas.grid) if self.phase.with_lessons else {}),
        }


@dataclass(frozen=True)
class CaptionedRegion:
    """A region, its caption, and the object's look where the attributes of the region are to be named."""

    region: Region
    caption: str
    look: Look | None = None


def sample_regions(scene: Scene, phase: Phase, rng: np.random.Generator) -> list[CaptionedRegion]:
    """Return regions of a scene with their captions.

    They come in this order: ``phase.singles`` over one object, ``phase.pairs`` over two, one of background, and the
    whole image by its mean and by its cls token.
    """
    return [
        *(_sample_single(scene, rng) for _ in range(phase.singles)),
        *(_sample_pair(scene, rng) for _ in range(phase.pairs)),
        CaptionedRegion(_background_region(scene.background, rng), scene.background_caption),
        CaptionedRegion(WholeImage(pool="mean"), scene.caption),
        CaptionedRegion(WholeImage(pool="cls"), scene.caption),
    ]


def _sample_single(scene: Scene, rng: np.random.Generator) -> CaptionedRegion:
    """Return a box, a mask or a trace over a random object."""
    item = scene.objects[rng.integers(len(scene.objects))]
    kinds: list[Region] = [_loose_box(item, rng), item.mask, item.trace(rng)]
    return CaptionedRegion(kinds[rng.integers(3)], item.look.caption, item.look)


def _loose_box(item: SceneObject, rng: np.random.Generator) -> Box:
    """Return the object's box with each side moved by up to a few pixels, outwards more than inwards."""
    box = item.box
    left, top, right, bottom = rng.uniform(-2, 4, 4)
    return Box(box.x1 - left, box.y1 - top, box.x2 + right, box.y2 + bottom)


def _sample_pair(scene: Scene, rng: np.random.Generator) -> CaptionedRegion:
    """Return the boxes of two random objects, or the first object's mask if no caption tells the two apart."""
    first, second = (scene.objects[i] for i in rng.choice(len(scene.objects), 2, replace=False))
    if scenes.is_pair(first.look, second.look):
        return CaptionedRegion(scenes.pair_region(first, second), scenes.pair_caption(first.look, second.look))
    return CaptionedRegion(first.mask, first.look.caption)


def _background_region(background: npt.NDArray[np.bool_], rng: np.random.Generator) -> Region:
    """Return a box of nothing but background, or all of the background if ten random boxes hold an object."""
    for _ in range(10):
        side = rng.integers(40, 90, 2)
        x, y = rng.integers(0, scenes.SIZE - side)
        if background[y : y + side[1], x : x + side[0]].all():
            return Box.from_xywh(float(x), float(y), float(side[0]), float(side[1]))
    return Mask(background)
