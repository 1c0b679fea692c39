"""patchcaption: describe any region of an image in words.

>>> from runtime import Box, Captioner
>>> captioner = Captioner.load("engines/demo")
>>> captioner.caption("export/demo/sample/scene.jpg", [Box(276, 174, 507, 399)])[0].text
'a large striped red triangle'
"""

from runtime.captioner import Captioner
from runtime.errors import (
    BackendError,
    BundleError,
    ImageError,
    OptionError,
    PatchcaptionError,
    RegionError,
    VideoError,
)
from runtime.features import FeatureMap
from runtime.image import Fit
from runtime.memory import MemoryMatch
from runtime.options import DecodingOptions, PoolingOptions, StreamOptions
from runtime.output.drawing import draw_captions
from runtime.regions import (
    AttentionHead,
    Box,
    BoxSet,
    Crop,
    Detection,
    Mask,
    Patch,
    Point,
    Polygon,
    PolygonSet,
    Region,
    Register,
    Trace,
    WholeImage,
)
from runtime.results import Caption
from runtime.serving.batching import Batching
from runtime.system.version import __version__
from runtime.video.frames import Frame
from runtime.video.stream import CaptionStream, FrameCaptions

__all__ = [
    "AttentionHead",
    "BackendError",
    "Batching",
    "Box",
    "BoxSet",
    "BundleError",
    "Caption",
    "CaptionStream",
    "Captioner",
    "Crop",
    "DecodingOptions",
    "Detection",
    "FeatureMap",
    "Fit",
    "Frame",
    "FrameCaptions",
    "ImageError",
    "Mask",
    "MemoryMatch",
    "OptionError",
    "Patch",
    "PatchcaptionError",
    "Point",
    "Polygon",
    "PolygonSet",
    "PoolingOptions",
    "Region",
    "RegionError",
    "Register",
    "StreamOptions",
    "Trace",
    "VideoError",
    "WholeImage",
    "__version__",
    "draw_captions",
]
