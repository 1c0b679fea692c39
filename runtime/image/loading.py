"""Opens an image from whatever a user holds: a path, a PIL image, an array or a tensor."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageOps, UnidentifiedImageError

from runtime.errors import ImageError

ImageSource: TypeAlias = "str | os.PathLike[str] | Image.Image | npt.NDArray[np.uint8] | torch.Tensor"
OpenImage: TypeAlias = "Image.Image | torch.Tensor"
"""An upright 8-bit RGB image: Pillow's; or, where it was on a GPU and is wanted there, (3, H, W) uint8."""


def open_image(source: ImageSource) -> Image.Image:
    """Reads ``source`` as an upright 8-bit RGB image.

    Args:
        source: a path; a PIL image; a uint8 RGB array (H, W, 3), or grey (H, W); a uint8 RGB tensor (3, H, W).

    Raises:
        ImageError: nothing readable there, a truncated file, another dtype or shape.
    """
    if isinstance(source, (str, os.PathLike)):
        return _upright_rgb(read_file(Path(source)))
    if isinstance(source, Image.Image):
        return _upright_rgb(source)
    if isinstance(source, torch.Tensor):
        source = _checked_tensor(source).cpu().permute(1, 2, 0).numpy()
    if isinstance(source, np.ndarray):
        return _from_array(source)
    raise ImageError(f"image: expected a path, PIL image, numpy array or torch tensor, got {type(source).__name__}")


def open_on(source: ImageSource, device: torch.device) -> OpenImage:
    """`open_image`, but what lies on ``device`` and is no CPU stays there."""
    if isinstance(source, torch.Tensor) and source.device == device and device.type != "cpu":
        return _checked_tensor(source)
    return open_image(source)


def size_wh(image: OpenImage) -> tuple[int, int]:
    """Width and height in pixels."""
    return image.size if isinstance(image, Image.Image) else (image.shape[2], image.shape[1])


def read_file(path: Path) -> Image.Image:
    """The image in a file, loaded whole, in whatever mode it was stored.

    Raises:
        ImageError: nothing readable there, or a truncated file.
    """
    try:
        with Image.open(path) as image:
            image.load()
            return image
    except FileNotFoundError:
        raise ImageError(f"{path}: no such file") from None
    except UnidentifiedImageError:
        raise ImageError(f"{path}: not an image that Pillow can read") from None
    except Image.DecompressionBombError as error:
        raise ImageError(f"{path}: {error}") from None
    except (OSError, SyntaxError, ValueError) as error:  # what Pillow's decoders raise on broken files
        raise ImageError(f"{path}: cannot be read as an image: {error}") from None


def _upright_rgb(image: Image.Image) -> Image.Image:
    if 0 in image.size:
        raise ImageError(f"image: expected at least one pixel, got {image.width} x {image.height}")
    upright = ImageOps.exif_transpose(image)
    if upright.mode.startswith("I;16") or upright.mode == "I":  # PIL's own conversion would clip at 255
        deep = np.asarray(upright).astype(np.uint32)
        upright = Image.fromarray((deep >> 8).clip(0, 255).astype(np.uint8))
    if upright.has_transparency_data:  # over white, where viewers show it so
        rgba = upright.convert("RGBA")
        paper = Image.new("RGBA", rgba.size, "white")
        paper.alpha_composite(rgba)
        upright = paper
    return upright.convert("RGB")


def _checked_tensor(tensor: torch.Tensor) -> torch.Tensor:
    """uint8 (3, H, W) with pixels.

    Raises:
        ImageError: it is something else.
    """
    if tensor.ndim != 3 or tensor.shape[0] != 3:
        raise ImageError(f"image tensor: expected shape (3, H, W), got {tuple(tensor.shape)}")
    if tensor.dtype != torch.uint8:
        raise ImageError(f"image tensor: expected dtype uint8 (0..255), got {tensor.dtype}")
    if tensor.numel() == 0:
        raise ImageError(f"image tensor: expected at least one pixel, got shape {tuple(tensor.shape)}")
    return tensor.detach()


def _from_array(array: npt.NDArray[np.uint8]) -> Image.Image:
    if array.dtype != np.uint8:
        raise ImageError(f"image array: expected dtype uint8 (0..255), got {array.dtype}")
    if array.ndim == 2:
        array = np.repeat(array[:, :, None], 3, axis=2)
    if array.ndim != 3 or array.shape[2] != 3:
        raise ImageError(f"image array: expected shape (H, W, 3) in RGB order or (H, W), got {array.shape}")
    if 0 in array.shape:
        raise ImageError(f"image array: expected at least one pixel, got shape {array.shape}")
    return Image.fromarray(np.ascontiguousarray(array))
