"""Whatever is given as regions is regions, or is refused in one line, by values such as libraries' results hold."""

from __future__ import annotations

import contextlib
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image

from runtime import RegionError
from runtime.regions.detections import as_rows
from runtime.results import RegionBatch

ENTRY_KEYS = [
    "bbox",
    "segmentation",
    "box",
    "mask",
    "xyxy",
    "segments",
    "counts",
    "size",
    "kind",
    "id",
    "score",
    "label",
]
RESULT_KEYS = [
    "boxes",
    "masks",
    "scores",
    "labels",
    "text_labels",
    "segmentation",
    "segments_info",
    "xyxy",
    "confidence",
]
CORNER_KEYS = ["xmin", "ymin", "xmax", "ymax", "x", "y", "x1", "size", "counts"]
BOXES_NAMES = ["xyxy", "xyxyn", "xyxyxyxy", "conf", "cls", "id", "mask", "data", "xy", "xyn", "class_id", "orig_shape"]
RESULTS_NAMES = ["xyxy", "mask", "masks", "boxes", "obb", "names", "orig_shape", "class_id", "confidence", "data"]

Strategy = st.SearchStrategy[Any]
numbers: Strategy = st.floats(-10, 80) | st.sampled_from([float("nan"), float("inf"), 2**70, None, "a", "13", True])
lists: Strategy = st.lists(numbers, max_size=8)
matrices: Strategy = arrays.arrays(
    st.sampled_from([np.bool_, np.uint8, np.int64, np.float16, np.float32, np.complex64, np.dtype("U2")]),
    arrays.array_shapes(min_dims=0, max_dims=5, min_side=0, max_side=6),
)
pictures: Strategy = arrays.arrays(np.uint8, st.tuples(st.integers(1, 5), st.integers(1, 5))).map(Image.fromarray)
tensors: Strategy = matrices.filter(lambda array: array.dtype.kind != "U").map(
    lambda array: torch.from_numpy(np.ascontiguousarray(array))
)
leaves = numbers | lists | matrices | tensors | pictures | st.lists(lists, max_size=3) | st.lists(matrices, max_size=3)


def some_of(keys: list[str], values: Strategy) -> Strategy:
    return st.dictionaries(st.sampled_from(keys), values, max_size=5)


def with_names(names: list[str], values: Strategy) -> Strategy:
    return some_of(names, values).map(lambda found: SimpleNamespace(**found))


entries = some_of(ENTRY_KEYS, leaves | some_of(CORNER_KEYS, leaves))
columns = some_of(RESULT_KEYS, leaves | st.lists(entries, max_size=3))
datasets = some_of(["annotations", "images", "categories"], leaves | st.lists(entries, max_size=3))
objects = with_names(RESULTS_NAMES, leaves | with_names(BOXES_NAMES, leaves))
anything = leaves | entries | columns | datasets | objects | st.lists(entries | leaves | objects | columns, max_size=3)


@settings(max_examples=500, deadline=None, suppress_health_check=list(HealthCheck))
@given(anything)
def test_anything_is_regions_or_refused_in_one_line(value: Any) -> None:
    for image_wh in ((64, 48), (4, 4), None):
        try:
            errors = [row.region for row in as_rows(value, image_wh) if isinstance(row.region, RegionError)]
        except RegionError as error:
            errors = [error]
        assert not any("\n" in str(error) for error in errors)
    for num_images in (0, 1, 2):
        with contextlib.suppress(RegionError):
            RegionBatch.of(value, [(64, 48)] * num_images).regions()
