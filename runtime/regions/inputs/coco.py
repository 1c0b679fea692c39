"""Annotations of data sets in COCO's form: {"images": [...], "annotations": [...], "categories": [...]}."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

from runtime.errors import RegionError
from runtime.regions.inputs.arrays import is_list
from runtime.regions.inputs.entries import ImageSize, row_of
from runtime.regions.rows import RegionRow


def is_dataset(value: object) -> bool:
    """Return whether a value is a data set with annotations."""
    return isinstance(value, Mapping) and "annotations" in value


class CocoAnnotations:
    """The annotations of a data set, by image.

    Raises:
        RegionError: a part of it is no list of dictionaries.
    """

    def __init__(self, dataset: Mapping[str, Any]) -> None:
        images, categories = _part(dataset, "images"), _part(dataset, "categories")
        self._annotations = _part(dataset, "annotations")
        self._names = {category.get("id"): category.get("name") for category in categories}
        self._files = [(str(image.get("file_name", "")), image.get("id")) for image in images]

    def rows(self, image_wh: ImageSize) -> list[RegionRow]:
        """Return a row for each annotation of the one image that there is.

        Raises:
            RegionError: there are several images.
        """
        ids = {annotation.get("image_id") for annotation in self._annotations}
        if len(ids) > 1:
            raise RegionError(f"annotations: expected those of one image, got those of {len(ids)}")
        return self._rows(self._annotations, image_wh)

    def rows_of_file(self, name: str, image_wh: ImageSize = None) -> list[RegionRow]:
        """Return a row for each annotation of the image with this file name; folders may differ.

        Raises:
            RegionError: no image of the data set has this name, or several have it.
        """
        if not self._files:
            return self.rows(image_wh)
        base = PurePath(name).name
        ids = [id for file, id in self._files if PurePath(file).name == base]
        if len(ids) != 1:
            raise RegionError(f"annotations: expected one image with the file name {base!r}, got {len(ids)}")
        return self._rows([one for one in self._annotations if one.get("image_id") == ids[0]], image_wh)

    def _rows(self, annotations: list[Mapping[str, Any]], image_wh: ImageSize) -> list[RegionRow]:
        return [row_of(self._named(annotation), image_wh) for annotation in annotations]

    def _named(self, annotation: Mapping[str, Any]) -> Mapping[str, Any]:
        name = self._names.get(annotation.get("category_id"))
        return annotation if name is None else {"category_name": name, **annotation}


def _part(dataset: Mapping[str, Any], name: str) -> list[Mapping[str, Any]]:
    entries = [] if dataset.get(name) is None else dataset[name]
    if not is_list(entries) or not all(isinstance(entry, Mapping) for entry in entries):
        raise RegionError(f"{name}: expected a list of dictionaries, as COCO has it")
    return list(entries)
