"""Reads calibration images, which show how large a backbone's activations become."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from export.checkpoint import Checkpoint, CheckpointError
from runtime.errors import ImageError
from runtime.image import Fit, ImageSource, open_image, prepare

MAX_IMAGES = 128
"""Images that are read: ranges hardly change after some tens, and each costs a run of the backbone."""


def read_calibration(folder: Path, checkpoint: Checkpoint) -> Tensor:
    """Return the images of a folder, in order of their names, as the backbone takes them: (B, S, S, 3) uint8.

    Files with the extension of no image format are skipped.

    Raises:
        CheckpointError: no folder, or no image in it.
        ImageError: an image cannot be read.
    """
    if not folder.is_dir():
        raise CheckpointError(f"--calibration {folder}: no such folder")
    files = [file for file in sorted(folder.iterdir()) if file.suffix.lower() in Image.registered_extensions()]
    if not files:
        raise CheckpointError(f"--calibration {folder}: expected images like those to be described, found none")
    try:
        return prepare_calibration(files[:MAX_IMAGES], checkpoint)
    except ImageError as error:
        raise ImageError(f"--calibration: {error}") from None


def prepare_calibration(images: Iterable[ImageSource], checkpoint: Checkpoint) -> Tensor:
    """Return images as the backbone takes them: (B, S, S, 3) uint8.

    Raises:
        ImageError: one cannot be read.
    """
    size = checkpoint.backbone.image_size
    return torch.cat([prepare([open_image(image)], size, Fit.STRETCH)[0] for image in images])
