"""Stage 1: what a user holds -> the pixels that the backbone takes, and the `View` that ties both geometries."""

from runtime.image.formats import FORMATS, IMAGE_SUFFIXES, open_file, read_size
from runtime.image.geometry import Fit, View
from runtime.image.limits import max_pixels, require_within_limit, split_by_pixels
from runtime.image.loading import ImageSource, OpenImage, in_rgb, open_image, open_on, size_wh
from runtime.image.preprocess import prepare, with_alpha

__all__ = [
    "FORMATS",
    "IMAGE_SUFFIXES",
    "Fit",
    "ImageSource",
    "OpenImage",
    "View",
    "in_rgb",
    "max_pixels",
    "open_file",
    "open_image",
    "open_on",
    "prepare",
    "read_size",
    "require_within_limit",
    "size_wh",
    "split_by_pixels",
    "with_alpha",
]
