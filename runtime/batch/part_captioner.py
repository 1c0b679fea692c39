"""Captions the images of a part: files are read while those before are encoded and described."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from runtime.batch.plan import PlannedImage
from runtime.batch.rows import CaptionRow
from runtime.captioner import Captioner
from runtime.errors import BundleError, ImageError, RegionError
from runtime.image import Fit, open_image, read_size, split_by_pixels
from runtime.options import DescribeKeywords, Precision
from runtime.regions import RegionRow
from runtime.regions.detections import as_rows
from runtime.system.closeable import Closeable
from runtime.system.machine import usable_cores

_IMAGES_AT_ONCE = 8
"""More make none of them cheaper."""
_MOST_READERS = 4
_PIXELS_AT_ONCE = 32_000_000
"""Of the images that are encoded together, and again of those that are read meanwhile; a larger one goes by itself."""


@dataclass(frozen=True)
class CaptionerSettings:
    """How a captioner is loaded, in this process or another, and what is asked of it.

    Attributes:
        bundle: its folder or its commit on the hub, as `runtime.hub.exact_name` gives them.
        manifest_sha256: of the bundle that is meant, whatever there is in the folder where it is loaded.
        fit: as for `Captioner.load`, as are backend, precision and threads.
        options: those of `Captioner.describe`.
    """

    bundle: str
    manifest_sha256: str
    backend: str = "auto"
    fit: Fit = Fit.STRETCH
    precision: Precision = "fp32"
    threads: int | None = None
    options: DescribeKeywords = field(default_factory=lambda: DescribeKeywords())

    def load(self) -> Captioner:
        """Return the captioner.

        Raises:
            BundleError: it cannot be loaded, or another bundle is there.
        """
        captioner = Captioner.load(
            self.bundle,
            self.backend,
            self.fit,
            precision=self.precision,
            threads=self.threads,
        )
        found = captioner.pipeline.bundle.manifest_sha256()
        if found != self.manifest_sha256:
            captioner.close()
            raise BundleError(
                f"{self.bundle}: expected the bundle with the manifest of sha256 {self.manifest_sha256}, got {found}: "
                "copy it to all machines"
            )
        return captioner


class PartCaptioner(Closeable):
    """A captioner, threads that read images for it, and as many that use it as keep the cores busy."""

    def __init__(self, settings: CaptionerSettings) -> None:
        self._captioner, self._options = settings.load(), settings.options
        self._callers = self._captioner.pipeline.encoder.default_callers()
        self._encode = self._captioner.encoder(self._callers)
        self._readers = ThreadPoolExecutor(min(_MOST_READERS, usable_cores()), "patchcaption reading")
        self._describers = ThreadPoolExecutor(self._callers, "patchcaption describing")

    def rows(self, images: Sequence[PlannedImage]) -> list[CaptionRow]:
        """Return a row for each region of some images, and one for each image that has none because of an error."""
        rows, working = list[CaptionRow](), deque[Future[list[CaptionRow]]]()
        opened = self._opened(images)
        for batch in split_by_pixels(opened, lambda one: one.num_pixels, _PIXELS_AT_ONCE, _IMAGES_AT_ONCE):
            if len(working) == self._callers:
                rows += working.popleft().result()
            working.append(self._describers.submit(self._rows_of_batch, batch))
        return rows + [row for batch in working for row in batch.result()]

    def close(self) -> None:
        """Release what the engines hold."""
        for threads in (self._readers, self._describers):
            threads.shutdown(cancel_futures=True)
        self._captioner.close()

    def _rows_of_batch(self, batch: Sequence[_Opened]) -> list[CaptionRow]:
        """Return the rows of images that are encoded together, in order."""
        readable = [one.image for one in batch if one.image is not None]
        regions = [one.regions for one in batch if one.image is not None]
        features = self._encode(readable)
        captions = iter(self._captioner.describe(features, regions, on_bad="skip", **self._options))
        rows = list[CaptionRow]()
        for one in batch:
            if one.image is None:
                rows.append(CaptionRow.missing(one.name, one.error))
            else:
                rows += [CaptionRow.of(one.name, index, caption) for index, caption in enumerate(next(captions))]
        return rows

    def _opened(self, images: Iterable[PlannedImage]) -> Iterator[_Opened]:
        """Yield images in order, and read some of those after it meanwhile."""
        reading, pixels = deque[tuple[int, Future[_Opened]]](), 0
        for image in images:
            if image.problem is None and not image.regions:
                continue
            size = _num_pixels(image.name)
            while reading and (len(reading) >= _IMAGES_AT_ONCE or pixels + size > _PIXELS_AT_ONCE):
                taken, opened = reading.popleft()
                pixels -= taken
                yield opened.result()
            reading.append((size, self._readers.submit(_open, image)))
            pixels += size
        for _, opened in reading:
            yield opened.result()


@dataclass(frozen=True)
class _Opened:
    """An image with its regions, or without, and why."""

    name: str
    image: Image.Image | None = None
    regions: list[RegionRow] = field(default_factory=list)
    error: str = ""

    @property
    def num_pixels(self) -> int:
        return 0 if self.image is None else self.image.width * self.image.height


def _open(planned: PlannedImage) -> _Opened:
    if planned.problem is not None:
        return _Opened(planned.name, error=f"{planned.name}: {planned.problem}")
    try:
        image = open_image(planned.name)
    except ImageError as error:
        return _Opened(planned.name, error=str(error))
    return _Opened(planned.name, image, [row for found in planned.regions for row in _rows_of(found, image.size)])


def _rows_of(found: Any, image_wh: tuple[int, int]) -> list[RegionRow]:
    try:
        return as_rows(found, image_wh)
    except RegionError as error:
        return [RegionRow(error)]


def _num_pixels(name: str) -> int:
    """Return how many pixels an image has by its header; none where whoever opens it will say why."""
    path = Path(name)
    try:
        if not path.is_file():  # a pipe would be waited for
            return 0
        with path.open("rb") as file:
            width, height = read_size(file, name)
    except (ImageError, OSError, ValueError):
        return 0
    return width * height
