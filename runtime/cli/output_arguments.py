"""What `caption` and `video` check of their outputs before the work."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

from PIL import Image

from runtime.system.files import is_folder
from runtime.system.outputs import Output, check_distinct


def check_outputs(outputs: Mapping[str, Output | None], options: argparse.Namespace, *sources: Path) -> None:
    """Raise if an output cannot be written, or would be written over another or over what the command reads.

    Args:
        outputs: by the flag that names each.
        options: with the bundle, and the files that regions are read from.
        sources: the images or videos that are captioned, or folders of images.
    """
    for output in outputs.values():
        if output is not None:
            output.check()
    images = [image for source in sources for image in _images(source)]
    check_distinct(outputs, [*images, *options.region_files, *_files(Path(options.bundle))])


def _images(source: Path) -> list[Path]:
    if not is_folder(source):
        return [source]
    return [file for file in _files(source) if file.suffix.lower() in Image.registered_extensions()]


def _files(folder: Path) -> list[Path]:
    return list(folder.iterdir()) if is_folder(folder) else []
