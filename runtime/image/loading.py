"""Opens an image from whatever a user holds: a path, encoded bytes, a file object, a PIL image, an array, a tensor."""

from __future__ import annotations

import inspect
import io
import os
from collections.abc import Callable
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Literal, Protocol, TypeAlias, cast, runtime_checkable

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from runtime.errors import ImageError
from runtime.image.colours import upright_rgb
from runtime.image.formats import decode, decoder_errors, open_file
from runtime.image.limits import require_within_limit


@runtime_checkable
class BinaryFile(Protocol):
    """A binary file object: an open file, a buffer, a network response."""

    def read(self) -> bytes:
        """Return all bytes from the current position on."""
        ...


ImageSource: TypeAlias = (
    "str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryFile | Image.Image | npt.NDArray[np.uint8]"
    " | torch.Tensor"
)
OpenImage: TypeAlias = "Image.Image | torch.Tensor"
"""An upright 8-bit RGB image: a PIL image, or a uint8 tensor (3, H, W) that stays on its GPU."""

_MAX_ENCODED_BYTES = 1 << 30
"""Of what a file object gives; one without an end would fill the memory."""
_PART_BYTES = 1 << 20


def open_image(source: ImageSource, channels: Literal["rgb", "bgr"] = "rgb") -> Image.Image:
    """Return ``source`` as an upright 8-bit RGB image.

    Args:
        source: a path; the bytes of an encoded image (JPEG, PNG, ...); a binary file object, which is read from its
            current position to its end; a PIL image; a uint8 RGB array (H, W, 3), or grey (H, W); a uint8 RGB tensor
            (3, H, W).
        channels: the order of the channels of an array or a tensor.

    Raises:
        ImageError: nothing readable there, a truncated file, another dtype or shape.
    """
    if isinstance(source, (str, os.PathLike)):
        return _upright(open_file(Path(source)), os.fspath(source))
    if isinstance(source, Image.Image):
        require_within_limit("image", *source.size)
        return _upright(source, "image")
    if isinstance(source, torch.Tensor):
        source = _validate_tensor(source)  # before its channels are turned, which copies it
    source = in_rgb(source, channels)
    if isinstance(source, torch.Tensor):
        source = source.cpu().permute(1, 2, 0).numpy()
    if isinstance(source, np.ndarray):
        return _from_array(source)
    if isinstance(source, (bytes, bytearray, memoryview)):
        return _upright(decode(io.BytesIO(source), "image bytes"), "image bytes")
    if isinstance(source, BinaryFile):
        return _upright(decode(_read_all(source), "image file object"), "image file object")
    raise ImageError(
        "image: expected a path, bytes, binary file object, PIL image, numpy array or torch tensor, got "
        f"{type(source).__name__}"
    )


def open_on(source: ImageSource, device: torch.device, channels: Literal["rgb", "bgr"] = "rgb") -> OpenImage:
    """Return ``source`` as `open_image` does; a tensor on ``device``, unless that is the CPU, stays there."""
    if isinstance(source, torch.Tensor) and source.device == device and device.type != "cpu":
        return cast(torch.Tensor, in_rgb(_validate_tensor(source), channels))
    return open_image(source, channels)


def in_rgb(source: ImageSource, channels: Literal["rgb", "bgr"]) -> ImageSource:
    """Return an array (H, W, 3) or a tensor (3, H, W) in RGB; anything else knows its order, and stays as it is."""
    if channels == "bgr" and isinstance(source, np.ndarray) and source.ndim == 3:
        return source[:, :, ::-1]
    if channels == "bgr" and isinstance(source, torch.Tensor) and _is_dense(source) and source.ndim == 3:
        return source.flip(0)
    return source


def size_wh(image: OpenImage) -> tuple[int, int]:
    """Return the width and height in pixels."""
    return image.size if isinstance(image, Image.Image) else (image.shape[2], image.shape[1])


def _upright(image: Image.Image, name: str) -> Image.Image:
    with decoder_errors(name):  # one that was opened but not loaded is decoded here
        return upright_rgb(image, name)


def _read_all(file: BinaryFile) -> io.BytesIO:
    """Return what a file object gives from its current position on, as far as the limit."""
    size = (_PART_BYTES,) if _takes_size(file.read) else ()
    data = io.BytesIO()
    while part := _read(file, *size):
        data.write(part)
        if data.tell() > _MAX_ENCODED_BYTES:
            raise ImageError(f"image file object: expected at most {_MAX_ENCODED_BYTES} bytes")
        if not size:  # it was all
            break
    data.seek(0)
    return data


def _takes_size(read: Callable[..., bytes]) -> bool:
    """Return whether a file object can be read part by part."""
    try:
        inspect.signature(read).bind(_PART_BYTES)
    except TypeError:
        return False
    except ValueError:  # built in, without a signature, as those of Python's own files
        pass
    return True


def _read(file: BinaryFile, *size: int) -> bytes:
    try:
        part: object = file.read(*size)
    except (MemoryError, StopIteration, CancelledError):  # which say nothing of the file
        raise
    except Exception as error:  # each kind of file has its own: one that was closed, an archive's, a connection's
        words = " ".join(str(error).split()) or type(error).__name__
        raise ImageError(f"image file object: cannot be read: {words}") from None
    if not isinstance(part, bytes):
        got = type(part).__name__
        raise ImageError(f"image file object: expected bytes, got {got}; open files in binary mode")
    return part


def _is_dense(tensor: torch.Tensor) -> bool:
    """Return whether a tensor holds a number at each of its places, unlike sparse, nested and meta tensors."""
    return not tensor.is_nested and tensor.layout == torch.strided and tensor.device.type != "meta"


def _validate_tensor(tensor: torch.Tensor) -> torch.Tensor:
    """Return the tensor without its gradient, after checking that it is uint8 (3, H, W) with at least one pixel.

    Raises:
        ImageError: it is something else.
    """
    if not _is_dense(tensor):
        raise ImageError("image tensor: expected a dense tensor with data, got a nested, sparse or meta tensor")
    if tensor.ndim != 3 or tensor.shape[0] != 3:
        raise ImageError(f"image tensor: expected shape (3, H, W), got {tuple(tensor.shape)}")
    if tensor.dtype != torch.uint8:
        raise ImageError(f"image tensor: expected dtype uint8 (0..255), got {tensor.dtype}")
    if tensor.numel() == 0:
        raise ImageError(f"image tensor: expected at least one pixel, got shape {tuple(tensor.shape)}")
    require_within_limit("image tensor", tensor.shape[2], tensor.shape[1])
    return tensor.detach()


def _from_array(array: npt.NDArray[np.uint8]) -> Image.Image:
    if array.dtype != np.uint8:
        raise ImageError(f"image array: expected dtype uint8 (0..255), got {array.dtype}")
    if array.ndim not in (2, 3) or array.shape[2:] not in ((), (3,)):
        raise ImageError(f"image array: expected shape (H, W, 3) in RGB order or (H, W), got {array.shape}")
    if 0 in array.shape:
        raise ImageError(f"image array: expected at least one pixel, got shape {array.shape}")
    require_within_limit("image array", array.shape[1], array.shape[0])
    if array.ndim == 2:
        array = np.repeat(array[:, :, None], 3, axis=2)
    return Image.fromarray(np.ascontiguousarray(array))
