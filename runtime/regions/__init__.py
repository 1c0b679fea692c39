"""Region kinds. Every region of every kind is one row of weights over the tokens of its image.

Shapes: T tokens of an image = 1 cls + registers + N patches, N = G * G patches in rows from the top left; R regions.
Coordinates are pixels of the original image, x to the right and y down, with whole numbers on pixel edges: the box
(0, 0, width, height) is the whole image. A patch counts by the share of it that the region covers. The published forms
(`Box.published` and its like) round to patches as the published system does instead.

A new kind is one frozen dataclass with `weights`; nothing after this package knows which kind a region was. The one
exception is `Crop`, which is not of the image's tokens: it is cut out and encoded by itself.
"""

from runtime.regions.boxes import Box, BoxSet, Crop
from runtime.regions.canvas import Canvas, Region, cls_attention, is_of_patches, weight_rows
from runtime.regions.published import PublishedBox, PublishedTrace
from runtime.regions.serialization import from_dict, regions_from_json, regions_from_list, to_dict
from runtime.regions.shapes import Mask, Point, Polygon, Trace
from runtime.regions.tokens import AttentionHead, Patch, Register, WholeImage

__all__ = [
    "AttentionHead",
    "Box",
    "BoxSet",
    "Canvas",
    "Crop",
    "Mask",
    "Patch",
    "Point",
    "Polygon",
    "PublishedBox",
    "PublishedTrace",
    "Region",
    "Register",
    "Trace",
    "WholeImage",
    "cls_attention",
    "from_dict",
    "is_of_patches",
    "regions_from_json",
    "regions_from_list",
    "to_dict",
    "weight_rows",
]
