"""Writes held-out demo scenes in the published evaluation's formats: `python -m export.demo.annotations OUT`.

OUT gets images/, with file names as in COCO, and their ground truth in the formats that `benchmarks/quality.py` reads:
captions.json (whole images), dense.json (boxes), sets.json (pairs of boxes) and traces.json. Of boxes and pairs, which
stand by caption, `--kind` has to say which they are.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Sequence
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from export.command_line import run_command
from export.demo import scenes
from export.demo.scenes import Scene, SceneObject
from runtime.errors import PatchcaptionError
from runtime.regions import Box

_SECONDS_BETWEEN_POINTS = 0.02


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    parser = argparse.ArgumentParser(description="Write held-out demo scenes with ground-truth captions.")
    parser.add_argument("out", type=Path, help="the folder to create")
    parser.add_argument("--scenes", type=int, default=50, help="number of scenes (default: 50)")
    options = parser.parse_args(arguments)
    return run_command(partial(write_annotations, options.out, options.scenes))


def write_annotations(out: Path, count: int) -> None:
    """Create the folder ``out`` with the first ``count`` held-out scenes; it appears only when it is complete.

    Raises:
        PatchcaptionError: ``out`` exists or cannot be created, or ``count`` is below 1.
    """
    if count < 1:
        raise PatchcaptionError(f"scenes: expected at least 1, got {count}")
    if out.exists():
        raise PatchcaptionError(f"{out}: it is there already; choose another folder or remove it")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as work:
            folder = Path(work) / out.name
            _write_scenes(folder, count)
            folder.rename(out)
    except OSError as error:
        raise PatchcaptionError(f"{out}: cannot be written: {error.strerror}") from None


def _write_scenes(folder: Path, count: int) -> None:
    """Write the images and the annotations of the first ``count`` held-out scenes."""
    (folder / "images").mkdir(parents=True)
    images: list[dict[str, Any]] = []
    captions: list[dict[str, Any]] = []
    boxes, pairs, traces = {}, {}, {}
    for image_id, seed in enumerate(range(scenes.HELD_OUT_SEED, scenes.HELD_OUT_SEED + count), start=1):
        scene = scenes.draw_scene(seed)
        name = f"{image_id:012d}.png"
        Image.fromarray(scene.image).save(folder / "images" / name)
        images.append({"id": image_id, "file_name": name, "width": scenes.SIZE, "height": scenes.SIZE})
        captions.append({"id": image_id, "image_id": image_id, "caption": scene.caption})
        boxes[str(image_id)] = boxes_of(scene)
        pairs[str(image_id)] = pairs_of(scene)
        traces[str(image_id)] = traces_of(scene, seed)
    files = {"captions": {"images": images, "annotations": captions}, "dense": boxes, "sets": pairs, "traces": traces}
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content) + "\n", encoding="utf-8")


def boxes_of(scene: Scene) -> dict[str, list[list[float]]]:
    """Return {caption: boxes [x1, y1, x2, y2] in pixels} of a scene's objects; those that look alike share one."""
    boxes = defaultdict(list)
    for item in scene.objects:
        boxes[item.look.caption].append(_xyxy(item.box))
    return dict(boxes)


def pairs_of(scene: Scene) -> dict[str, list[list[float]]]:
    """Return {caption: two boxes} of a scene's pairs; a caption that fits several pairs is left out."""
    pairs: list[tuple[SceneObject, SceneObject]] = [
        (first, second) for first, second in combinations(scene.objects, 2) if scenes.is_pair(first.look, second.look)
    ]
    captions = [scenes.pair_caption(first.look, second.look) for first, second in pairs]
    count = Counter(captions)
    return {
        caption: [_xyxy(first.box), _xyxy(second.box)]
        for caption, (first, second) in zip(captions, pairs, strict=True)
        if count[caption] == 1
    }


def traces_of(scene: Scene, seed: int) -> dict[str, list[Any]]:
    """Return {"captions": ..., "traces": ...} of a scene's objects.

    A trace's points are {"x": ..., "y": ..., "t": ...}: x and y from 0 to 1 across the image, t in seconds.
    """
    rng = np.random.default_rng([seed, 2])
    traces = [
        [
            {"x": x / scenes.SIZE, "y": y / scenes.SIZE, "t": round(index * _SECONDS_BETWEEN_POINTS, 2)}
            for index, (x, y) in enumerate(item.trace(rng).points)
        ]
        for item in scene.objects
    ]
    return {"captions": [item.look.caption for item in scene.objects], "traces": traces}


def _xyxy(box: Box) -> list[float]:
    """Return a box as [x1, y1, x2, y2]."""
    return [box.x1, box.y1, box.x2, box.y2]


if __name__ == "__main__":
    sys.exit(main())
