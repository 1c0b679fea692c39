"""patchcaption: describe any region of an image in words.

>>> from runtime import Box, Captioner
>>> captioner = Captioner.load("engines/demo")
>>> captions = captioner.caption("photo.jpg", [Box(10, 20, 200, 180)])
"""

from runtime.captioner import Caption, Captioner
from runtime.drawing import draw_captions
from runtime.errors import BackendError, BundleError, ImageError, PatchcaptionError, RegionError
from runtime.features import FeatureMap
from runtime.image import Fit
from runtime.regions import Box, BoxSet, Mask, Point, Region, Trace, WholeImage

__version__ = "0.1.0"

__all__ = [
    "BackendError",
    "Box",
    "BoxSet",
    "BundleError",
    "Caption",
    "Captioner",
    "FeatureMap",
    "Fit",
    "ImageError",
    "Mask",
    "PatchcaptionError",
    "Point",
    "Region",
    "RegionError",
    "Trace",
    "WholeImage",
    "__version__",
    "draw_captions",
]
