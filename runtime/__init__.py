"""patchcaption: describe any region of an image in words.

>>> from runtime import Box, Captioner
>>> captioner = Captioner.load("engines/demo")
>>> captioner.caption("export/demo/sample/scene.jpg", [Box(276, 174, 507, 399)])[0].text
'a large striped red triangle'

A name is imported when it is first used: most need torch, whose import takes a second or more.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
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

_HOMES = {
    "runtime.captioner": "Captioner",
    "runtime.errors": "BackendError BundleError ImageError OptionError PatchcaptionError RegionError VideoError",
    "runtime.features": "FeatureMap",
    "runtime.image": "Fit",
    "runtime.memory": "MemoryMatch",
    "runtime.options": "DecodingOptions PoolingOptions StreamOptions",
    "runtime.output.drawing": "draw_captions",
    "runtime.regions": "AttentionHead Box BoxSet Crop Detection Mask Patch Point Polygon PolygonSet Region Register "
    "Trace WholeImage",
    "runtime.results": "Caption",
    "runtime.serving.batching": "Batching",
    "runtime.system.version": "__version__",
    "runtime.video.frames": "Frame",
    "runtime.video.stream": "CaptionStream FrameCaptions",
}
"""The public names, by the module that each is in."""
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names.split()}


def __getattr__(name: str) -> Any:
    """Return a public name, from the module that it is in."""
    if name not in _HOME_OF:
        raise AttributeError(f"module 'runtime' has no attribute '{name}'")
    return globals().setdefault(name, getattr(import_module(_HOME_OF[name]), name))


def __dir__() -> list[str]:
    return [*globals(), *__all__]
