"""Regions as pixels of the backbone's input, for backbones that see in an alpha plane what is to be described.

See published-system.md, section 17.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from runtime.bundle import TokenLayout
from runtime.regions.canvas import Canvas, Region
from runtime.regions.tokens import Patch, WholeImage


def marked_pixels(region: Region, canvas: Canvas) -> npt.NDArray[np.bool_]:
    """Return the pixels (S, S) of the backbone's input that a region covers, at least in part; for the whole image all.

    Args:
        canvas: of its image.

    Raises:
        RegionError: the region has no place on the image.
    """
    size = canvas.view.size
    if isinstance(region, WholeImage):
        return np.ones((size, size), np.bool_)
    if isinstance(region, Patch):
        patches = region.weights(canvas)[canvas.layout.num_global :].reshape(canvas.grid, canvas.grid) > 0
        return patches.repeat(canvas.patch, axis=0).repeat(canvas.patch, axis=1)
    # Not checked against the limits of a manifest: no graph has so many tokens.
    pixels = Canvas(canvas.view, TokenLayout.model_construct(global_tokens=(), grid=size), canvas.cls_attention_logits)
    return region.weights(pixels).reshape(size, size) > 0
