"""Resizes and crops images to the pixels that the backbone takes, on the device where it runs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image

from runtime.image.geometry import Fit, View
from runtime.image.gpu_resize import resize_and_crop, to_device
from runtime.image.limits import require_within_limit
from runtime.image.loading import OpenImage, open_image, size_wh

_CPU = torch.device("cpu")


def prepare(
    images: Sequence[OpenImage], size: int, fit: Fit, resize: int | None = None, device: torch.device = _CPU
) -> tuple[torch.Tensor, tuple[View, ...]]:
    """Resize, and with fit="crop" crop, RGB images for the backbone, on the device where it runs.

    Antialiased bicubic on 8-bit pixels as published: by Pillow on a CPU, within 1 of it on a GPU. Normalisation happens
    inside the backbone engine.

    Args:
        resize: the short side before a crop, where it is not ``size``.
        device: where the pixels are wanted. A GPU gets whole images, uploaded once, and does the rest.

    Returns:
        Pixels (B, size, size, 3) uint8 on the device, and the view of each image.

    Raises:
        ImageError: an image is so thin that with fit="crop" it would be resized to more pixels than are opened.
    """
    views = tuple(View.of(size_wh(image), size, fit, resize) for image in images)
    if fit is Fit.CROP:  # a thin image becomes a very long one before it is cropped
        for view in views:
            require_within_limit("image, resized for the crop", *view.resized_wh)
    fit_image = _fit_by_pillow if device.type == "cpu" else _fit_on_device
    pixels = torch.empty((len(views), size, size, 3), dtype=torch.uint8, device=device)
    for row, image, view in zip(pixels, images, views, strict=True):
        row.copy_(fit_image(image, view, device))
    return pixels, views


def with_alpha(pixels: torch.Tensor) -> torch.Tensor:
    """Return RGB pixels (B, S, S, 3) uint8 with an alpha plane that marks all of the image (B, S, S, 4)."""
    return torch.cat([pixels, torch.full_like(pixels[..., :1], 255)], dim=-1)


def _fit_by_pillow(image: OpenImage, view: View, _: torch.device) -> torch.Tensor:
    (left, top), size = view.offset_xy, view.size
    # Cropping inside resize (its `box`) filters differently at the edges than the published resize-then-crop.
    opened = image if isinstance(image, Image.Image) else open_image(image)
    resized = opened.resize(view.resized_wh, Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(resized.crop((left, top, left + size, top + size))))


def _fit_on_device(image: OpenImage, view: View, device: torch.device) -> torch.Tensor:
    return resize_and_crop(to_device(image, device), view.resized_wh, view.offset_xy, view.size)
