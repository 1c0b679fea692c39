"""Captions of what any detector finds: `python examples/detector_captions.py clip.mp4`.

A detector is a function of a frame that returns what it finds in any form that docs/regions.md lists: supervision's
detections, results of ultralytics, Hugging Face or torchvision, boxes (n, 4), masks. The one here finds what differs
from the border of the image, so that the example needs no other model; put yours in its place:

    def detect(frame):
        return yolo(frame.image[..., ::-1])[0]  # ultralytics takes arrays in OpenCV's order

A tracker's ids, classes and confidences are in each caption's ``detection``.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from patchcaption import Captioner, Frame

_MIN_CONTRAST = 60
"""Smallest difference of a colour channel to the border's, of 255."""
_CELL = 8
"""Side of the cells that are looked at, in pixels."""


@dataclass(frozen=True)
class Found:
    """Boxes in image pixels (n, 4)."""

    xyxy: npt.NDArray[np.float64]


def detect(frame: Frame) -> Found:
    """Return boxes around the parts of an image (H, W, 3) whose colour is not that of its border."""
    image = np.asarray(frame.image).astype(int)
    border = np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]])
    differs = np.abs(image - np.median(border, axis=0)).max(axis=2) > _MIN_CONTRAST
    rows, columns = (side // _CELL for side in differs.shape)
    cells = differs[: rows * _CELL, : columns * _CELL].reshape(rows, _CELL, columns, _CELL).mean(axis=(1, 3)) > 0.5
    boxes = []
    while cells.any():
        part = _connected(cells, tuple(np.argwhere(cells)[0]))
        (top, left), (bottom, right) = part.min(axis=0), part.max(axis=0) + 1
        boxes.append((left * _CELL, top * _CELL, right * _CELL, bottom * _CELL))
        cells[part[:, 0], part[:, 1]] = False
    return Found(np.array(boxes, dtype=np.float64).reshape(-1, 4))


def _connected(cells: npt.NDArray[np.bool_], start: tuple[int, ...]) -> npt.NDArray[np.int64]:
    """Return the indices (n, 2) of the cells that touch ``start`` and each other."""
    found, edge = {start}, [start]
    while edge:
        row, column = edge.pop()
        for index in ((row - 1, column), (row + 1, column), (row, column - 1), (row, column + 1)):
            is_inside = 0 <= index[0] < cells.shape[0] and 0 <= index[1] < cells.shape[1]
            if is_inside and index not in found and cells[index]:
                found.add(index)
                edge.append(index)
    return np.array(sorted(found))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Describe what a detector finds in a video.")
    parser.add_argument("source", help="a video file, or a folder of images")
    parser.add_argument("--bundle", default="engines/demo")
    options = parser.parse_args(arguments)
    with Captioner.load(options.bundle) as captioner:
        for described in captioner.stream(options.source, detect):
            for caption in described.captions:
                if not caption.reused and caption.error is None:
                    name = "" if caption.detection is None else f" {caption.detection.class_name}"
                    print(f"frame {described.frame.number}:{name} {caption.region}: {caption.text}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
