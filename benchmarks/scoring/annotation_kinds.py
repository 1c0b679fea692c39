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

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.scoring.annotation_files import GroundTruthError, parse_json
from benchmarks.scoring.ground_truth import READERS
from benchmarks.scoring.published_rows import find_data_set

KINDS = tuple(READERS)


_IMAGE_KEYS = {
    ("captions", "traces"): "traces",
    ("sentences", "split"): "captions",  # Karpathy's
    ("regions", "id"): "dense",  # Visual Genome's
}
"""What an image has in layouts in which it has more than captions, and the kind of ground truth that it then is."""


def recognize_kind(paths: Sequence[Path]) -> str:
    """Return the kind of ground truth in a file, or in the files that are its parts.

    Raises:
        GroundTruthError: a file is no JSON or in none of the layouts of `annotation_files`, its boxes may be meant as
            "dense" or as "sets", or the parts are of several kinds.
    """
    kinds = {path: _kind_of_file(path) for path in paths}
    first, *others = set(kinds.values())
    if others:
        raise GroundTruthError(", ".join(f"{path}: {kind}" for path, kind in kinds.items()) + ": expected one kind")
    return first


def _kind_of_file(path: Path) -> str:
    raw = parse_json(path)
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
    """Yield the annotations of a file in COCO's layout, the images of others that have anything."""
    if isinstance(raw, dict) and "annotations" in raw:
        yield from _listed(raw["annotations"])
    elif isinstance(raw, dict) and isinstance(raw.get("images"), list):
        yield from raw["images"]
    elif isinstance(raw, dict):
        yield from filter(None, raw.values())
    else:
        yield from _listed(raw)


def _listed(entries: Any) -> list[Any]:
    return entries if isinstance(entries, list) else []


def _kind_of(entry: Any) -> str | None:
    """Return the kind of an annotation or of what an image has; None if it is in no layout."""
    if isinstance(entry, list):
        return "captions"
    if not isinstance(entry, dict):
        return None
    if isinstance(entry.get("caption"), str):
        return "dense" if "bbox" in entry else "captions"
    kind = next((kind for keys, kind in _IMAGE_KEYS.items() if set(keys) <= entry.keys()), None)
    if kind is not None:
        return kind
    return "boxes" if all(isinstance(boxes, list) for boxes in entry.values()) else None
