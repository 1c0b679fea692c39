"""patchcaption: describe any region of an image in words.

>>> from runtime import Box, Captioner
>>> captioner = Captioner.load("engines/demo")
>>> captions = captioner.caption("photo.jpg", [Box(10, 20, 200, 180)])
"""

from runtime.caption import Caption
from runtime.captioner import Captioner
from runtime.drawing import draw_captions
from runtime.errors import BackendError, BundleError, ImageError, PatchcaptionError, RegionError
from runtime.features import FeatureMap
from runtime.image import Fit
from runtime.memory import MemoryMatch
from runtime.regions import (
    AttentionHead,
    Box,
    BoxSet,
    Crop,
    Mask,
    Patch,
    Point,
    Polygon,
    Region,
    Register,
    Trace,
    WholeImage,
)

__version__ = "0.1.0"

__all__ = [
    "AttentionHead",
    "BackendError",
    "Box",
    "BoxSet",
    "BundleError",
    "Caption",
    "Captioner",
    "Crop",
    "FeatureMap",
    "Fit",
    "ImageError",
    "Mask",
    "MemoryMatch",
    "Patch",
    "PatchcaptionError",
    "Point",
    "Polygon",
    "Region",
    "RegionError",
    "Register",
    "Trace",
    "WholeImage",
    "__version__",
    "draw_captions",
]
