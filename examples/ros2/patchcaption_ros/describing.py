"""Describes the newest image and its detections in a thread of its own, so that captions do not come late."""

from __future__ import annotations

from collections.abc import Callable
from threading import Condition, Thread
from typing import Any

from patchcaption import Captioner, PatchcaptionError
from patchcaption_ros.images import image_of
from patchcaption_ros.messages import captions_as_text, regions_of


class Describer:
    """Describes one image after another; of those that arrive meanwhile, only the newest waits.

    Args:
        publish: takes the text of each image's captions.
        report_error: takes what was wrong with an image; the next is described all the same.
    """

    def __init__(
        self, captioner: Captioner, publish: Callable[[str], None], report_error: Callable[[str], None]
    ) -> None:
        self._captioner, self._publish, self._report_error = captioner, publish, report_error
        self._waiting: tuple[Any, Any] | None = None
        self._is_closed = False
        self._changed = Condition()
        self._thread = Thread(target=self._work, name="describing", daemon=True)
        self._thread.start()

    def submit(self, image: Any, detections: Any) -> None:
        """Let an image's detections be described next, in place of those that wait; return at once."""
        with self._changed:
            self._waiting = (image, detections)
            self._changed.notify_all()

    def close(self) -> None:
        """Finish the image in progress, and end."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        self._thread.join()

    def _work(self) -> None:
        while (taken := self._take()) is not None:
            try:
                self._publish(describe(self._captioner, *taken))
            except (PatchcaptionError, ValueError) as error:
                self._report_error(str(error))

    def _take(self) -> tuple[Any, Any] | None:
        with self._changed:
            self._changed.wait_for(lambda: self._waiting is not None or self._is_closed)
            taken, self._waiting = self._waiting, None
            return None if self._is_closed else taken


def describe(captioner: Captioner, image: Any, detections: Any) -> str:
    """Return the captions of one image's detections, as the message's text."""
    pixels = image_of(image)
    regions = regions_of(detections, (pixels.shape[1], pixels.shape[0]))
    seconds = image.header.stamp.sec + image.header.stamp.nanosec / 1e9
    captions = captioner.caption(pixels, list(regions.values()))
    return captions_as_text(dict(zip(regions, captions, strict=True)), detections, seconds)
