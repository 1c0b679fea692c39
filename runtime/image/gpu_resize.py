"""Resizing on a GPU: images are uploaded once as 8-bit pixels, and resized there as Pillow does it on the CPU.

Shapes: H, W of an image, S side of the backbone's input.
"""

from __future__ import annotations

import numpy as np
import PIL
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

_PILLOW_MAJOR = int(PIL.__version__.split(".")[0])


def to_device(image: Image.Image | Tensor, device: torch.device) -> Tensor:
    """Return an RGB image as uint8 (3, H, W) on a device; the host does not wait for the upload."""
    if isinstance(image, Tensor):
        return image.to(device, non_blocking=True)
    pixels = torch.from_numpy(np.array(image))  # (H, W, 3)
    if device.type == "cuda":
        pixels = pixels.pin_memory()
    return pixels.to(device, non_blocking=True).permute(2, 0, 1)


def resize_and_crop(image: Tensor, resized_wh: tuple[int, int], offset_xy: tuple[int, int], size: int) -> Tensor:
    """Return uint8 (S, S, 3): uint8 (3, H, W) resized to ``resized_wh``, and the square of ``size`` at ``offset_xy``.

    Pixels differ by at most 1 from Pillow's antialiased bicubic filter, which rounds its weights to fixed point; after
    both directions by 2 in one of 100,000.
    """
    (width, height), (left, top) = resized_wh, offset_xy
    first_hw = (height, image.shape[2]) if _is_vertical_first(image, resized_wh) else (image.shape[1], width)
    resized = _interpolate(_interpolate(image, first_hw), (height, width))  # Pillow too rounds to 8 bits in between
    return F.pad(resized, (-left, left + size - width, -top, top + size - height)).permute(1, 2, 0)


def _is_vertical_first(image: Tensor, resized_wh: tuple[int, int]) -> bool:
    """Return whether to resize the height first, as Pillow does since 13 where it loses twice the width's pixels."""
    lost_wh = (image.shape[2] - resized_wh[0], image.shape[1] - resized_wh[1])
    return _PILLOW_MAJOR >= 13 and lost_wh[1] > max(0, 2 * lost_wh[0])


def _interpolate(image: Tensor, size_hw: tuple[int, int]) -> Tensor:
    if tuple(image.shape[1:]) == size_hw:
        return image
    # Laid out plane by plane, torch 2.13 gets images of width 1 wrong on CPUs.
    pixels = image[None].to(torch.float32, memory_format=torch.channels_last)
    floats = F.interpolate(pixels, size_hw, mode="bicubic", align_corners=False, antialias=True)[0]
    return (floats + 0.5).floor().clamp(0, 255).to(torch.uint8)  # halves go up, as Pillow rounds
