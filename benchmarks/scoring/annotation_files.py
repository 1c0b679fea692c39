"""Parses files of ground truth, and checks them against their formats.

| ground truth | file |
|---|---|
| captions of images | COCO captions |
| | Karpathy's dataset_coco.json, of which the test split is read |
| | {image id: [caption, ...]} |
| boxes by themselves | COCO annotations with a "bbox" each, as ControlCap's of Visual Genome |
| | Visual Genome's own region_descriptions.json |
| | {image id: {caption: [box, ...]}} |
| sets of boxes | {image id: {caption: [box, ...]}} |
| traces | {image id: {"captions": [...], "traces": [...]}}, the k-th trace of the k-th caption |

A box is four numbers in image pixels; four of -1 fill a list of boxes up and are none. A trace is a list of points
{"x", "y", "t"} in 0..1 of the image, or a list of such lists.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, TypeAlias, TypeVar

from pydantic import BaseModel, BeforeValidator, Field, FiniteFloat, TypeAdapter, ValidationError

from runtime import PatchcaptionError

T = TypeVar("T")

BoxNumbers: TypeAlias = tuple[FiniteFloat, FiniteFloat, FiniteFloat, FiniteFloat]
BoxesOfCaption: TypeAlias = tuple[tuple[BoxNumbers, ...], str]
BoxFormat: TypeAlias = Literal["xyxy", "xywh"]

KARPATHY_SPLIT = "test"
"""The split that is read of a file that has several."""

_PADDING = [-1, -1, -1, -1]


class GroundTruthError(PatchcaptionError, ValueError):
    """A ground-truth file that is not of its format, or images of it that are not there."""


@dataclass(frozen=True)
class AnnotationFile(Generic[T]):
    """The annotations of a file by image id, in the file's order, and the file names that it gives to images.

    Attributes:
        box_format: that of its boxes, where the kind of file says it.
    """

    path: Path
    by_image: Mapping[str, T]
    file_names: Mapping[str, str | None] = field(default_factory=dict)
    box_format: BoxFormat | None = None


class TracePoint(BaseModel):
    """A point of a trace, in 0..1 of the image."""

    x: FiniteFloat
    y: FiniteFloat


def _join_segments(trace: Any) -> Any:
    """Return the points of a trace, which may be written in segments."""
    is_segmented = isinstance(trace, list) and trace and all(isinstance(part, list) for part in trace)
    return list(chain.from_iterable(trace)) if is_segmented else trace


def _without_padding(boxes: Any) -> Any:
    """Return the boxes of a caption without those that fill a list up to the longest."""
    return [box for box in boxes if box != _PADDING] if isinstance(boxes, list) else boxes


class Traces(BaseModel):
    """The captions of an image and their traces."""

    captions: list[str]
    traces: list[Annotated[list[TracePoint], BeforeValidator(_join_segments)]]


def load_captions(path: Path) -> AnnotationFile[list[str]]:
    """Load the captions of each image.

    Raises:
        GroundTruthError: names the file, the entry, what was expected and what it is; so do the functions below.
    """
    raw = parse_json(path)
    if _is_karpathy(raw):
        return _load_karpathy_split(path, raw)
    if not _is_coco(raw):
        by_image = _validate(path, _CAPTIONS, raw)
        return AnnotationFile(path, by_image)
    coco = _validate(path, _COCO_CAPTIONS, raw)
    captions = {
        image: [annotation.caption for annotation in annotations]
        for image, annotations in _group_by_image(path, coco).items()
    }
    return AnnotationFile(path, captions, coco.file_names)


def load_boxes(path: Path) -> AnnotationFile[list[BoxesOfCaption]]:
    """Load the boxes of each image, one at a time, with the caption of each."""
    raw = parse_json(path)
    boxes: dict[str, list[BoxesOfCaption]]
    if isinstance(raw, list):
        return _load_region_descriptions(path, raw)
    if not _is_coco(raw):
        boxes = {
            image: [((box,), caption) for caption, own in by_caption.items() for box in own]
            for image, by_caption in _validate(path, _BOXES, raw).items()
        }
        return AnnotationFile(path, boxes)
    coco = _validate(path, _COCO_BOXES, raw)
    boxes = {
        image: [((annotation.bbox,), annotation.caption) for annotation in annotations]
        for image, annotations in _group_by_image(path, coco).items()
    }
    return AnnotationFile(path, boxes, coco.file_names)


def load_sets(path: Path) -> AnnotationFile[list[BoxesOfCaption]]:
    """Load the sets of boxes of each image, with the caption of each."""
    sets = {
        image: [(tuple(boxes), caption) for caption, boxes in by_caption.items()]
        for image, by_caption in _validate(path, _BOXES, parse_json(path)).items()
    }
    return AnnotationFile(path, sets)


def load_traces(path: Path) -> Iterator[tuple[str, Traces]]:
    """Yield the traces of each image, as many as captions, after its id; of one image at a time, as points are many."""
    seen = set[str]()
    for image, raw in parse_members(path):
        if image in seen:
            raise GroundTruthError(f"{path}: {image}: expected each image once, got it again")
        seen.add(image)
        own = _validate(f"{path}: {image}", _TRACES, raw)
        expected, got = len(own.captions), len(own.traces)
        if got != expected:
            raise GroundTruthError(f"{path}: {image}: expected as many traces as captions, {expected}, got {got}")
        yield image, own


def _load_karpathy_split(path: Path, raw: Any) -> AnnotationFile[list[str]]:
    images = _validate(path, _KARPATHY, raw).images
    chosen = [image for image in images if image.split == KARPATHY_SPLIT]
    if not chosen:
        splits = ", ".join(sorted({image.split for image in images})) or "no images"
        raise GroundTruthError(f"{path}: images: expected some of the split {KARPATHY_SPLIT}, got {splits}")
    captions = {image.id: [sentence.raw for sentence in image.sentences] for image in chosen}
    _check_unique(path, "images", [image.id for image in chosen])
    return AnnotationFile(path, captions, {image.id: image.filename for image in chosen})


def _load_region_descriptions(path: Path, raw: Any) -> AnnotationFile[list[BoxesOfCaption]]:
    images = _validate(path, _REGION_DESCRIPTIONS, raw)
    _check_unique(path, "images", [str(image.id) for image in images])
    boxes: dict[str, list[BoxesOfCaption]] = {
        str(image.id): [(((one.x, one.y, one.width, one.height),), one.phrase) for one in image.regions]
        for image in images
    }
    return AnnotationFile(path, boxes, box_format="xywh")


def _check_unique(path: Path, name: str, ids: list[str]) -> None:
    repeated = next((image for image, count in Counter(ids).items() if count > 1), None)
    if repeated is not None:
        raise GroundTruthError(f"{path}: {name}: expected each image once, got {repeated} again")


class _KarpathySentence(BaseModel):
    raw: str


class _KarpathyImage(BaseModel):
    filename: str
    split: str
    sentences: list[_KarpathySentence]
    cocoid: int | None = None

    @property
    def id(self) -> str:
        return Path(self.filename).stem if self.cocoid is None else str(self.cocoid)


class _Karpathy(BaseModel):
    images: list[_KarpathyImage]


class _DescribedRegion(BaseModel):
    x: FiniteFloat
    y: FiniteFloat
    width: FiniteFloat
    height: FiniteFloat
    phrase: str


class _DescribedImage(BaseModel):
    id: int | str
    regions: list[_DescribedRegion]


class _CocoImage(BaseModel):
    id: int | str
    file_name: str | None = None


class _CocoCaption(BaseModel):
    image_id: int | str
    caption: str


class _CocoBox(_CocoCaption):
    bbox: BoxNumbers


_Annotation = TypeVar("_Annotation", bound=_CocoCaption)


class _Coco(BaseModel, Generic[_Annotation]):
    images: list[_CocoImage] = []
    annotations: list[_Annotation]

    @property
    def file_names(self) -> dict[str, str | None]:
        return {str(image.id): image.file_name for image in self.images}


_CAPTIONS = TypeAdapter(dict[str, list[str]])
_COCO_CAPTIONS = TypeAdapter(_Coco[_CocoCaption])
_COCO_BOXES = TypeAdapter(_Coco[_CocoBox])
_KARPATHY = TypeAdapter(_Karpathy)
_REGION_DESCRIPTIONS = TypeAdapter(list[_DescribedImage])
_BOXES = TypeAdapter(
    dict[str, dict[str, Annotated[list[BoxNumbers], Field(min_length=1), BeforeValidator(_without_padding)]]]
)
_TRACES = TypeAdapter(Traces)
_OBJECT = TypeAdapter(dict[str, Any])
_DECODER = json.JSONDecoder()
_SPACE = re.compile(r"[ \t\n\r]*")


def parse_json(path: Path) -> Any:
    """Return what a file of JSON holds.

    Raises:
        GroundTruthError: it is not there, cannot be read or is no JSON.
    """
    with _reading(path):
        return json.loads(path.read_bytes())


def parse_members(path: Path) -> Iterator[tuple[str, Any]]:
    """Yield the members of a JSON object, of which one is in memory at a time, beside the text.

    Raises:
        GroundTruthError: as `parse_json`, or the file holds no object.
    """
    with _reading(path):
        data = path.read_bytes()
        text = data.decode(json.detect_encoding(data), "surrogatepass")
    del data
    at = _skip_space(text, 0)
    if text[at : at + 1] != "{":
        _validate(path, _OBJECT, parse_json(path))
    mark = "{"
    while mark in ("{", ","):
        with _reading(path):
            at = _skip_space(text, at + 1)
            if mark == "{" and text[at : at + 1] == "}":
                break
            key, at = _name_of_member(text, at)
            value, at = _DECODER.raw_decode(text, _skip_space(text, at + 1))
            at = _skip_space(text, at)
            mark = text[at : at + 1]
        yield key, value
    with _reading(path):
        if text[at : at + 1] != "}" or text[at + 1 :].strip(" \t\n\r"):
            raise json.JSONDecodeError("expected the end of the object", text, at)


def _name_of_member(text: str, at: int) -> tuple[str, int]:
    """Return the name of a member, and the place of the colon behind it."""
    if text[at : at + 1] != '"':
        raise json.JSONDecodeError("expected a name in quotes", text, at)
    name, at = _DECODER.raw_decode(text, at)
    at = _skip_space(text, at)
    if text[at : at + 1] != ":":
        raise json.JSONDecodeError("expected ':'", text, at)
    return name, at


def _skip_space(text: str, at: int) -> int:
    found = _SPACE.match(text, at)
    return found.end() if found else at


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise GroundTruthError(f"{path}: no such file") from None
    except OSError as error:
        raise GroundTruthError(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:  # of JSON, and of text that is no UTF-8
        raise GroundTruthError(f"{path}: expected JSON: {error}") from None


def _validate(path: Path | str, adapter: TypeAdapter[T], raw: Any) -> T:
    try:
        return adapter.validate_python(raw)
    except ValidationError as error:
        first = error.errors()[0]
        location = ": ".join([str(path), *(str(step) for step in first["loc"])])
        raise GroundTruthError(f"{location}: {first['msg']}, got {repr(first['input'])[:60]}") from None


def _is_coco(raw: Any) -> bool:
    return isinstance(raw, dict) and "annotations" in raw


def _is_karpathy(raw: Any) -> bool:
    """Return whether a file holds images with sentences, as Karpathy's; COCO's have annotations beside the images."""
    images = raw.get("images") if isinstance(raw, dict) and not _is_coco(raw) else None
    return isinstance(images, list) and all(isinstance(image, dict) for image in images)


def _group_by_image(path: Path, coco: _Coco[_Annotation]) -> dict[str, list[_Annotation]]:
    by_image: dict[str, list[_Annotation]] = {image: [] for image in coco.file_names}
    for number, annotation in enumerate(coco.annotations):
        image = str(annotation.image_id)
        if coco.images and image not in by_image:
            raise GroundTruthError(f"{path}: annotations: {number}: expected image_id among its images, got {image}")
        by_image.setdefault(image, []).append(annotation)
    return by_image
