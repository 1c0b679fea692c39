"""Tells which kind of ground truth a file holds, by what is in it.

| kind | what |
|---|---|
| captions | captions of whole images |
| dense | boxes, each captioned by itself |
| sets | boxes, all those of a caption together |
| traces | mouse traces |

Boxes by caption, {image id: {caption: [box, ...]}}, may be meant either way: their kind has to be said, unless the file
has as many images and captions as one of the paper's.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.scoring.annotation_files import GroundTruthError, _parse
from benchmarks.scoring.ground_truth import READERS
from benchmarks.scoring.published_rows import find_data_set

KINDS = tuple(READERS)


def recognize_kind(path: Path) -> str:
    """Return the kind of ground truth in a file.

    Raises:
        GroundTruthError: the file is no JSON or in none of the layouts of `annotation_files`, or its boxes may be meant
            as "dense" or as "sets".
    """
    raw = _parse(path)
    kinds = {_kind_of(entry) for entry in _entries(raw)}
    kind = kinds.pop() if len(kinds) == 1 else None
    if kind is None:
        raise GroundTruthError(
            f"{path}: its contents do not say which kind of ground truth it is: say --kind {', '.join(KINDS[:-1])} or "
            f"{KINDS[-1]}"
        )
    if kind != "boxes":
        return kind
    if find_data_set("sets", path.name, len(raw), sum(map(len, raw.values()))):
        return "sets"
    raise GroundTruthError(
        f"{path}: its boxes stand by caption: say --kind dense if each is captioned by itself, --kind sets if all "
        "those of a caption are"
    )


def _entries(raw: Any) -> Iterator[Any]:
    """Yield the annotations of a file in COCO's layout, else what stands under each image that has anything."""
    if isinstance(raw, dict) and "annotations" in raw:
        yield from raw["annotations"] if isinstance(raw["annotations"], list) else ()
    elif isinstance(raw, dict):
        yield from (entry for entry in raw.values() if entry)


def _kind_of(entry: Any) -> str | None:
    if isinstance(entry, list):
        return "captions"
    if not isinstance(entry, dict):
        return None
    if isinstance(entry.get("caption"), str):
        return "dense" if "bbox" in entry else "captions"
    if "traces" in entry:
        return "traces"
    return "boxes" if all(isinstance(boxes, list) for boxes in entry.values()) else None
