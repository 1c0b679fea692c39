"""Finds the image files of a ground truth."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.scoring.annotation_files import GroundTruthError
from benchmarks.scoring.ground_truth import AnnotatedImage

SUFFIXES = (".jpg", ".jpeg", ".png")

_COCO_NAME = re.compile(r"COCO_\w+_(\d{12})")
_COCO_DIGITS = 12
_MAX_NAMED = 3
"""Missing images that an error names."""


@dataclass(frozen=True)
class ImageFiles:
    """Where the images of a ground truth lie.

    Attributes:
        found: the file of each image that is there, by image id.
        missing: the names that the file of each other image may have, by image id.
    """

    found: Mapping[str, Path]
    missing: Mapping[str, str]


def find_images(images: Iterable[AnnotatedImage], folders: Sequence[Path]) -> ImageFiles:
    """Return the file of each image.

    A file is looked for by the name that the ground truth gives it, then by the image's id, by the id padded to 12
    digits, and by that with a COCO prefix (COCO_val2014_000000000042.jpg); where folders share a name, in the first.

    Raises:
        GroundTruthError: a folder is not there, or none of the images is in any of them.
    """
    files = _by_stem(folders)
    found: dict[str, Path] = {}
    missing: dict[str, str] = {}
    for image in images:
        stems = list(_stems(image))
        file = next((files[stem] for stem in stems if stem in files), None)
        if file is None:
            missing[image.id] = " or ".join(stems)
        else:
            found[image.id] = file
    if not found:
        raise GroundTruthError(missing_images(missing, len(missing), folders))
    return ImageFiles(found, missing)


def missing_images(missing: Mapping[str, str], count: int, folders: Sequence[Path]) -> str:
    """Return one line that says how many of ``count`` images are missing, and names the first of them."""
    first = ", ".join(list(missing.values())[:_MAX_NAMED])
    more = ", ..." if len(missing) > _MAX_NAMED else ""
    where = " or ".join(str(folder) for folder in folders)
    return (
        f"{where}: {len(missing)} of {count} images are missing: expected {first}{more} with one of "
        f"{', '.join(SUFFIXES)}"
    )


def _by_stem(folders: Sequence[Path]) -> dict[str, Path]:
    """Return all image files by their names without suffix; those with a COCO prefix by their 12 digits too."""
    files: dict[str, Path] = {}
    for folder in folders:
        if not folder.is_dir():
            raise GroundTruthError(
                f"{folder}: expected a folder of images, got {'a file' if folder.exists() else 'nothing there'}"
            )
        inside = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
        for path in inside:
            files.setdefault(path.stem, path)
        for path in inside:
            if coco := _COCO_NAME.fullmatch(path.stem):
                files.setdefault(coco[1], path)
    return files


def _stems(image: AnnotatedImage) -> Iterator[str]:
    """Yield the names without suffix that the image's file may have, most likely first."""
    if image.file_name:
        stem = Path(image.file_name).stem
        yield stem
        if coco := _COCO_NAME.match(stem):
            yield coco[1]
    yield image.id
    if image.id.isdecimal() and len(image.id) < _COCO_DIGITS:
        yield image.id.zfill(_COCO_DIGITS)
