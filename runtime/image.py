"""From what a user holds to the pixels that the backbone takes, and the geometry that ties both together."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageOps, UnidentifiedImageError

from runtime.errors import ImageError
from runtime.resizing import frame_on, resized_and_cut

ImageSource: TypeAlias = "str | os.PathLike[str] | Image.Image | npt.NDArray[np.uint8] | torch.Tensor"
OpenImage: TypeAlias = "Image.Image | torch.Tensor"
"""An upright 8-bit RGB image: Pillow's; or, where it was on a GPU and is wanted there, (3, H, W) uint8."""


_CPU = torch.device("cpu")


class Fit(str, Enum):
    """How an image is brought to the square that the backbone takes (SPEC section 1).

    Example:
        >>> with Captioner.load("engines/demo", fit=Fit.CROP) as published:
        ...     published.encode(scene).views[0].fit
        <Fit.CROP: 'crop'>
    """

    STRETCH = "stretch"
    """The whole image, its aspect ratio not kept."""
    CROP = "crop"
    """Short side to the backbone's size, then the centre square, as published."""


@dataclass(frozen=True)
class View:
    """Where the pixels of an image lie on the backbone's square input.

    ``x_input = x * resized_wh[0] / image_wh[0] - offset_xy[0]``, and the same for y; what lies in 0..size is seen.
    """

    image_wh: tuple[int, int]
    resized_wh: tuple[int, int]
    offset_xy: tuple[int, int]
    size: int
    fit: Fit

    @classmethod
    def of(cls, image_wh: tuple[int, int], size: int, fit: Fit, resize: int | None = None) -> View:
        """The view of an image of ``image_wh`` pixels on an input of ``size`` x ``size``.

        Args:
            resize: what a crop makes of the short side before it cuts out the centre; None for ``size``.
        """
        if fit is Fit.STRETCH:
            return cls(image_wh, (size, size), (0, 0), size, fit)
        width, height = image_wh
        short = resize or size
        # The long side is cut, not rounded, and the offset rounded half to even: the published rule.
        resized = (short, int(short * height / width)) if width <= height else (int(short * width / height), short)
        offset = (round((resized[0] - size) / 2), round((resized[1] - size) / 2))
        return cls(image_wh, resized, offset, size, fit)

    def to_input(self, points: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Image pixels (..., 2) as (x, y) to input pixels (..., 2)."""
        return points * (np.array(self.resized_wh) / np.array(self.image_wh)) - np.array(self.offset_xy)

    def to_image(self, points: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Input pixels (..., 2) as (x, y) to image pixels (..., 2)."""
        return (points + np.array(self.offset_xy)) * (np.array(self.image_wh) / np.array(self.resized_wh))

    def published_box(self, x: float, y: float, width: float, height: float) -> tuple[float, float, float, float]:
        """A box by corner and size in image pixels to input pixels, as the published evaluation does (SPEC section 1).

        It differs from `to_input` in its rounding, and does not shrink a box by what the crop cuts off its left or top.
        """
        scales = np.array(self.resized_wh) / np.array(self.image_wh)
        if self.fit is Fit.CROP:
            scales[:] = min(self.resized_wh) / min(self.image_wh)
        resized = (np.array(self.image_wh) * scales).astype(int)
        corner = np.array([x, y]) * scales - np.maximum((resized - self.size) // 2, 0)
        corner = corner.clip(0, self.size - 1)
        extent = (np.array([width, height]) * scales).clip(0, self.size - corner)
        return (*corner.tolist(), *extent.tolist())


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


def prepare(
    images: Sequence[OpenImage], size: int, fit: Fit, resize: int | None = None, device: torch.device = _CPU
) -> tuple[torch.Tensor, tuple[View, ...]]:
    """Resizes (and crops) RGB images for the backbone, on the device where it runs.

    Antialiased bicubic on 8-bit pixels as published: by Pillow on a CPU, within 1 of it on a GPU. Normalisation happens
    inside the backbone engine.

    Args:
        resize: the short side before a crop, where it is not ``size``.
        device: where the pixels are wanted. A GPU gets whole images, uploaded once, and does the rest.

    Returns:
        pixels (B, size, size, 3) uint8 on the device, and the view of each image.
    """
    views = tuple(View.of(size_wh(image), size, fit, resize) for image in images)
    fitted = _fitted_by_pillow if device.type == "cpu" else _fitted_on_device
    pixels = torch.empty((len(views), size, size, 3), dtype=torch.uint8, device=device)
    for row, image, view in zip(pixels, images, views, strict=True):
        row.copy_(fitted(image, view, device))
    return pixels, views


def _fitted_by_pillow(image: OpenImage, view: View, _: torch.device) -> torch.Tensor:
    (left, top), size = view.offset_xy, view.size
    # Cropping inside resize (its `box`) filters differently at the edges than the published resize-then-crop.
    picture = image if isinstance(image, Image.Image) else open_image(image)
    resized = picture.resize(view.resized_wh, Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(resized.crop((left, top, left + size, top + size))))


def _fitted_on_device(image: OpenImage, view: View, device: torch.device) -> torch.Tensor:
    return resized_and_cut(frame_on(image, device), view.resized_wh, view.offset_xy, view.size)


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
