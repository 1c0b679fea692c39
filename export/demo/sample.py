"""Writes the sample that `make demo` captions: `python -m export.demo.sample` fills export/demo/sample/.

It is a held-out scene, enlarged three times so that captions drawn on it are legible, with one region of each kind.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from export.demo import scenes

FOLDER = Path(__file__).parent / "sample"
SEED = scenes.HELD_OUT_SEED + 1002
SCALE = 3


def main() -> None:
    """Write the sample's image, mask, region flags and expected captions."""
    scene = scenes.draw_scene(SEED)
    triangle, square, star, ring, moon = scene.objects
    side_px = scenes.SIZE * SCALE
    Image.fromarray(scene.image).resize((side_px, side_px), Image.Resampling.LANCZOS).save(
        FOLDER / "scene.jpg", quality=90
    )
    mask = Image.fromarray(np.where(moon.visible, 255, 0).astype(np.uint8))
    mask.resize((side_px, side_px), Image.Resampling.NEAREST).save(FOLDER / "mask.png", bits=1)
    points = np.array(star.trace(np.random.default_rng(SEED)).points) / scenes.SIZE
    trace = " ".join(f"{x:.3f},{y:.3f}" for x, y in points)
    triangle_box, *pair = (
        ",".join(f"{SCALE * coordinate:.0f}" for coordinate in (box.x1, box.y1, box.x2, box.y2))
        for box in (triangle.box, square.box, ring.box)
    )
    flags = f'--box {triangle_box} --mask {{folder}}/mask.png --trace "{trace}" --boxes "{pair[0]} {pair[1]}" --whole'
    (FOLDER / "regions.txt").write_text(flags.format(folder="export/demo/sample") + "\n")
    looks = (triangle.look.caption, moon.look.caption, star.look.caption)
    captions = (*looks, scenes.pair_caption(square.look, ring.look), scene.caption)
    (FOLDER / "captions.txt").write_text("\n".join(captions) + "\n")


if __name__ == "__main__":
    main()
