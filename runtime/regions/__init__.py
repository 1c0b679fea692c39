"""Stage 3: regions -> rows of weights over the tokens of their image, one row a region whatever its kind.

Shapes: R regions; T tokens of an image, of which N = G * G are its patches, in rows from the top left.
Coordinates are pixels of the original image, x to the right and y down, with whole numbers on pixel edges: the box
(0, 0, width, height) is the whole image. A patch counts by how much of it the region covers. The published forms
(`Box.published`, `Trace.published`) round to patches as the published system does instead.

A new kind is a frozen dataclass with `weights`, an `outline` if it has a place on the image, and a line in
`serialization.py`; no later stage knows which kind a region was. The one exception is `Crop`, which is cut out and
encoded by itself.
"""

from runtime.regions.boxes import Box, BoxSet, Crop
from runtime.regions.canvas import Canvas, Region, cls_attention, is_of_patches, weight_rows
from runtime.regions.marks import marked_pixels
from runtime.regions.published import PublishedBox, PublishedTrace
from runtime.regions.rows import Detection, RegionRow
from runtime.regions.serialization import from_dict, regions_from_json, regions_from_list, to_dict
from runtime.regions.shapes import Mask, Point, Polygon, PolygonSet, Trace
from runtime.regions.tokens import AttentionHead, Patch, Register, WholeImage

__all__ = [
    "AttentionHead",
    "Box",
    "BoxSet",
    "Canvas",
    "Crop",
    "Detection",
    "Mask",
    "Patch",
    "Point",
    "Polygon",
    "PolygonSet",
    "PublishedBox",
    "PublishedTrace",
    "Region",
    "RegionRow",
    "Register",
    "Trace",
    "WholeImage",
    "cls_attention",
    "from_dict",
    "is_of_patches",
    "marked_pixels",
    "regions_from_json",
    "regions_from_list",
    "to_dict",
    "weight_rows",
]
