"""Where `caption --save` writes: one picture to the file that is named, several into a folder."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping
from pathlib import Path

from runtime.cli.image_arguments import ImageArguments
from runtime.cli.output_arguments import check_outputs
from runtime.errors import ImageError, PatchcaptionError
from runtime.output.picture_file import picture_format
from runtime.system.files import follow_links, is_folder, is_there
from runtime.system.outputs import Output

_KEPT_SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})
"""Endings that a picture keeps; what others may hold, PNG holds too."""


def outputs_of(images: ImageArguments, options: argparse.Namespace) -> Mapping[Path, Output]:
    """Return where the picture of each image goes; none without --save.

    Raises:
        ImageError: it cannot be written there, which is a mistake on the command line.
    """
    save: Output | None = options.save
    if save is None:
        return {}
    try:
        if images.is_single and (save.is_stdout or not is_folder(str(save))):
            return _of_file(images.paths[0], save, options)
        return _of_folder(images, save, options)
    except PatchcaptionError as error:
        raise ImageError(str(error)) from None


def make_folder(outputs: Mapping[Path, Output], options: argparse.Namespace) -> None:
    """Make the folder that several pictures go into, where it does not exist.

    Raises:
        PatchcaptionError: it cannot be made.
    """
    if options.save is None or list(outputs.values()) == [options.save]:
        return
    with options.save.errors():
        Path(str(options.save)).mkdir(exist_ok=True)


def _of_file(image: Path, save: Output, options: argparse.Namespace) -> Mapping[Path, Output]:
    check_outputs({"--save": save}, options, image)
    picture_format(save)
    return {image: save}


def _of_folder(images: ImageArguments, save: Output, options: argparse.Namespace) -> Mapping[Path, Output]:
    folder = Path(str(save))
    with save.errors():
        follow_links(folder)  # raises if no file can have this name
    if save.is_stdout or (is_there(folder) and not is_folder(folder)):
        raise ImageError(f"--save {save}: expected a folder, as the pictures may be several")
    if not is_folder(folder.absolute().parent):
        raise ImageError(f"{save}: the folder {folder.absolute().parent} does not exist")
    if is_folder(folder) and not os.access(folder, os.W_OK):
        raise ImageError(f"{save}: cannot be written: it is write-protected")
    outputs, taken = dict[Path, Output](), set[str]()
    for image in images.paths:
        if image not in outputs:
            outputs[image] = Output(folder / _free_name(image, taken))
    read = {_identity(path) for path in (*images.paths, *options.region_files)} - {None}
    for output in outputs.values():
        if _identity(Path(str(output))) in read:
            raise ImageError(f"--save {save}: {output} is read, and would be overwritten; name another folder")
        if is_folder(folder):
            output.check()
    return outputs


def _free_name(image: Path, taken: set[str]) -> str:
    """Return the name of an image's picture, with a number where another image has the same; add it to those taken."""
    suffix = image.suffix if image.suffix.lower() in _KEPT_SUFFIXES else ".png"
    name, number = f"{image.stem}{suffix}", 1
    while name.casefold() in taken:
        number += 1
        name = f"{image.stem}-{number}{suffix}"
    taken.add(name.casefold())
    return name


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except (OSError, ValueError):
        return None
    return status.st_dev, status.st_ino
