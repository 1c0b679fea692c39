"""Ground truth: the regions of images that a bundle is asked to caption, and what people said of them.

The formats stand in `annotation_files`. A caption of several lines is several references. Captions of the same boxes
are references of one item.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TypeAlias, TypeVar

from benchmarks.scoring.annotation_files import (
    AnnotationFile,
    BoxesOfCaption,
    BoxNumbers,
    GroundTruthError,
    Traces,
    load_boxes,
    load_captions,
    load_sets,
    load_traces,
)
from benchmarks.scoring.region_forms import RegionForm
from runtime import Region, RegionError

T = TypeVar("T")


@dataclass(frozen=True)
class Item:
    """One region to caption, and its references: what people said of it, at least one caption."""

    region: Region
    references: tuple[str, ...]


@dataclass(frozen=True)
class AnnotatedImage:
    """An image by its id, the items on it (at least one), and the name of its file where the ground truth gives it."""

    id: str
    items: tuple[Item, ...]
    file_name: str | None = None


Reader: TypeAlias = Callable[[Path, RegionForm], list[AnnotatedImage]]


def read_captions(path: Path, form: RegionForm) -> list[AnnotatedImage]:
    """Images as wholes, with their captions.

    Raises:
        GroundTruthError: names the file, the entry, what was expected and what came; so do the functions below.
    """

    def items(place: str, captions: list[str]) -> list[Item]:
        references = tuple(chain.from_iterable(_references(place, caption) for caption in captions))
        return [Item(_region(place, form.whole_image), references)] if references else []

    return _annotated(load_captions(path), items)


def read_dense(path: Path, form: RegionForm) -> list[AnnotatedImage]:
    """Boxes, each by itself."""

    def items(place: str, boxes: list[BoxesOfCaption]) -> list[Item]:
        return _box_items(place, boxes, form, lambda one: form.box(one[0]))

    return _annotated(load_boxes(path), items)


def read_sets(path: Path, form: RegionForm) -> list[AnnotatedImage]:
    """Sets of boxes, each under one caption."""

    def items(place: str, sets: list[BoxesOfCaption]) -> list[Item]:
        return _box_items(place, sets, form, form.box_set)

    return _annotated(load_sets(path), items)


def read_traces(path: Path, form: RegionForm) -> list[AnnotatedImage]:
    """Mouse traces."""

    def items(place: str, own: Traces) -> Iterable[Item]:
        for number, (caption, trace) in enumerate(zip(own.captions, own.traces, strict=True)):
            make = partial(form.trace, [(point.x, point.y) for point in trace])
            yield Item(_region(f"{place}: trace {number}", make), _references(place, caption))

    return _annotated(load_traces(path), items)


READERS: Mapping[str, Reader] = {
    "captions": read_captions,
    "dense": read_dense,
    "sets": read_sets,
    "traces": read_traces,
}


def _annotated(file: AnnotationFile[T], items: Callable[[str, T], Iterable[Item]]) -> list[AnnotatedImage]:
    """The images that have any items."""
    made = ((image, tuple(items(f"{file.path}: {image}", own))) for image, own in file.by_image.items())
    images = [AnnotatedImage(image, own, file.file_names.get(image)) for image, own in made if own]
    if not images:
        raise GroundTruthError(f"{file.path}: expected at least one caption, got none")
    return images


def _box_items(
    place: str,
    captioned: Iterable[BoxesOfCaption],
    form: RegionForm,
    region: Callable[[tuple[BoxNumbers, ...]], Region],
) -> list[Item]:
    references: dict[tuple[BoxNumbers, ...], list[str]] = defaultdict(list)
    regions: dict[tuple[BoxNumbers, ...], Region] = {}
    for boxes, caption in captioned:
        same = tuple(sorted(boxes))
        references[same] += _references(place, caption)
        if same not in regions:
            hint = f"; boxes are read as {form.box_format}"
            regions[same] = _region(f"{place}: {caption}", partial(region, boxes), hint)
    return [Item(regions[same], tuple(own)) for same, own in references.items()]


def _region(place: str, make: Callable[[], Region], hint: str = "") -> Region:
    try:
        return make()
    except RegionError as error:
        raise GroundTruthError(f"{place}: {error}{hint}") from None


def _references(place: str, caption: str) -> tuple[str, ...]:
    """The references in a caption: the published region sets write several in one, a line each."""
    lines = tuple(line.strip() for line in caption.split("\n") if line.strip())
    if not lines:
        raise GroundTruthError(f"{place}: expected a caption, got an empty one")
    return lines
