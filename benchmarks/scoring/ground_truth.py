"""Ground truth: regions of images, and the captions that people gave them.

The formats are those of `annotation_files`. A caption of several lines is several references; captions of the same
boxes are references of one item, but in the published form, which scores each against its own. Dense captioning mAP
counts boxes by themselves, each time that one is annotated: `AnnotatedImage.annotations`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
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
from benchmarks.scoring.disk_mapping import DiskMapping
from benchmarks.scoring.region_forms import RegionForm
from runtime import Region, RegionError

T = TypeVar("T")


@dataclass(frozen=True)
class Item:
    """A region to caption, and its references: at least one caption that people gave it."""

    region: Region
    references: tuple[str, ...]


@dataclass(frozen=True)
class BoxAnnotation:
    """A box, x1, y1, x2, y2 in image pixels, its caption as it was written, and the number of the item for that box."""

    box: BoxNumbers
    caption: str
    item: int


@dataclass(frozen=True)
class AnnotatedImage:
    """An image by its id, the items on it (at least one), and the name of its file where the ground truth gives it.

    Attributes:
        annotations: of dense captions, every annotated box in the file's order.
    """

    id: str
    items: tuple[Item, ...]
    file_name: str | None = None
    annotations: tuple[BoxAnnotation, ...] = ()


Reader: TypeAlias = Callable[[Path, RegionForm], Iterable[AnnotatedImage]]


def read_captions(path: Path, form: RegionForm) -> list[AnnotatedImage]:
    """Read whole images with their captions.

    Raises:
        GroundTruthError: names the file, the entry, what was expected and what it is; so do the functions below.
    """

    def items(location: str, captions: list[str]) -> list[Item]:
        references = tuple(chain.from_iterable(_references(location, caption) for caption in captions))
        return [Item(_region(location, form.whole_image), references)] if references else []

    return _annotated_images(load_captions(path), items)


def read_dense(path: Path, form: RegionForm) -> list[AnnotatedImage]:
    """Read boxes, each with captions of its own."""
    file = load_boxes(path)
    own_form = replace(form, box_format=file.box_format or form.box_format)

    def items(location: str, boxes: list[BoxesOfCaption]) -> list[Item]:
        return _box_items(location, boxes, own_form, lambda one: own_form.box(one[0]))

    return [
        replace(image, annotations=_box_annotations(file.by_image[image.id], own_form))
        for image in _annotated_images(file, items)
    ]


def read_sets(path: Path, form: RegionForm) -> list[AnnotatedImage]:
    """Read sets of boxes, each under one caption."""

    def items(location: str, sets: list[BoxesOfCaption]) -> list[Item]:
        return _box_items(location, sets, form, form.box_set)

    return _annotated_images(load_sets(path), items)


def read_traces(path: Path, form: RegionForm) -> Iterator[AnnotatedImage]:
    """Read mouse traces with their captions, image by image."""

    def items(location: str, own: Traces) -> Iterable[Item]:
        for number, (caption, trace) in enumerate(zip(own.captions, own.traces, strict=True)):
            make = partial(form.trace, [(point.x, point.y) for point in trace])
            yield Item(_region(f"{location}: trace {number}", make), _references(location, caption))

    is_empty = True
    for image, own in load_traces(path):
        if own.captions:
            yield AnnotatedImage(image, tuple(items(f"{path}: {image}", own)))
            is_empty = False
    if is_empty:
        raise _without_captions(path)


READERS: Mapping[str, Reader] = {
    "captions": read_captions,
    "dense": read_dense,
    "sets": read_sets,
    "traces": read_traces,
}


def read_parts(kind: str, paths: Sequence[Path], form: RegionForm) -> DiskMapping[AnnotatedImage]:
    """Read a ground truth that comes in several files, of one kind of `READERS`; an image may be in several of them.

    Returns:
        the images by their ids, in the order of the files; they lie on the disk.

    Raises:
        GroundTruthError: as when reading one, or the files give an image different names.
    """
    merged = DiskMapping[AnnotatedImage]()
    for path in paths:
        for image in READERS[kind](path, form):
            before = merged.get(image.id)
            merged[image.id] = image if before is None else _join_image(path, before, image)
    return merged


def _join_image(path: Path, before: AnnotatedImage, image: AnnotatedImage) -> AnnotatedImage:
    names = {one.file_name for one in (before, image) if one.file_name}
    if len(names) > 1:
        raise GroundTruthError(
            f"{path}: {image.id}: expected the file name {before.file_name}, as in another part, got {image.file_name}"
        )
    annotations = (replace(one, item=len(before.items) + one.item) for one in image.annotations)
    return AnnotatedImage(
        image.id, (*before.items, *image.items), next(iter(names), None), (*before.annotations, *annotations)
    )


def _annotated_images(file: AnnotationFile[T], items: Callable[[str, T], Iterable[Item]]) -> list[AnnotatedImage]:
    """Return the images that have any items."""
    made = ((image, tuple(items(f"{file.path}: {image}", own))) for image, own in file.by_image.items())
    images = [AnnotatedImage(image, own, file.file_names.get(image)) for image, own in made if own]
    if not images:
        raise _without_captions(file.path)
    return images


def _without_captions(path: Path) -> GroundTruthError:
    return GroundTruthError(f"{path}: expected at least one caption, got none")


def _box_items(
    location: str,
    captioned: Iterable[BoxesOfCaption],
    form: RegionForm,
    region: Callable[[tuple[BoxNumbers, ...]], Region],
) -> list[Item]:
    references: dict[Hashable, list[str]] = defaultdict(list)
    regions: dict[Hashable, Region] = {}
    for number, (boxes, caption) in enumerate(captioned):
        same = _item_key(boxes, number, form)
        references[same] += _references(location, caption)
        if same not in regions:
            hint = f"; boxes are read as {form.box_format}"
            regions[same] = _region(f"{location}: {caption}", partial(region, boxes), hint)
    return [Item(regions[same], tuple(own)) for same, own in references.items()]


def _box_annotations(captioned: Iterable[BoxesOfCaption], form: RegionForm) -> tuple[BoxAnnotation, ...]:
    """Return each box with the number of its item, as `_box_items` counts them."""
    numbers: dict[Hashable, int] = {}
    return tuple(
        BoxAnnotation(form.corners(boxes[0]), caption, numbers.setdefault(_item_key(boxes, number, form), len(numbers)))
        for number, (boxes, caption) in enumerate(captioned)
    )


def _item_key(boxes: tuple[BoxNumbers, ...], number: int, form: RegionForm) -> Hashable:
    """Return what captions of one item have in common."""
    return number if form.form == "published" else tuple(sorted(boxes))


def _region(location: str, make: Callable[[], Region], hint: str = "") -> Region:
    try:
        return make()
    except RegionError as error:
        raise GroundTruthError(f"{location}: {error}{hint}") from None


def _references(location: str, caption: str) -> tuple[str, ...]:
    """Return the references in a caption: the published region sets write several in one, a line each."""
    lines = tuple(line.strip() for line in caption.split("\n") if line.strip())
    if not lines:
        raise GroundTruthError(f"{location}: expected a caption, got an empty one")
    return lines
