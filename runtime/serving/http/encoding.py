"""Encodes the images of all clients: those that wait go through the backbone together."""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from threading import Lock
from time import perf_counter

from runtime.captioner import Captioner
from runtime.errors import ImageError
from runtime.features import FeatureMap
from runtime.image import OpenImage, open_on
from runtime.serving.http.timed import Timed, ms_since
from runtime.serving.limits import count_pixels
from runtime.system.closeable import Closeable
from runtime.system.threads import passable

MOST_IMAGES = 8
"""Of a batch: more make no image cheaper, and the first waits for the last."""


@dataclass(frozen=True, eq=False)
class _Waiting:
    """An image that is to be encoded, and its feature map to come."""

    image: bytes
    num_pixels: int
    answer: Future[Timed[FeatureMap]] = field(default_factory=Future)


class EncodingQueue(Closeable):
    """Threads that share a captioner's backbone; each takes all images that wait when it is free.

    Args:
        workers: threads, and so batches at a time.
        max_pixels: of an image, and of those of a batch together.
    """

    def __init__(self, captioner: Captioner, workers: int, max_pixels: int) -> None:
        self._captioner, self._max_pixels = captioner, max_pixels
        self._most_images = min(MOST_IMAGES, captioner.manifest.backbone.max_batch_size)
        self._waiting: deque[_Waiting] = deque()
        self._taking = Lock()
        self._threads = ThreadPoolExecutor(workers, "patchcaption encoding")

    def submit(self, image: bytes) -> Future[Timed[FeatureMap]]:
        """Return the feature map to come of an encoded image.

        Raises:
            OverLimitError: it has more pixels than the limit, by its header.
            ImageError: it has no header that can be read.
        """
        waiting = _Waiting(image, count_pixels(image, self._max_pixels))
        self._waiting.append(waiting)
        self._threads.submit(self._work)
        return waiting.answer

    def close(self) -> None:
        """End the threads; images that wait are given up."""
        self._threads.shutdown(cancel_futures=True)
        for waiting in self._waiting:
            waiting.answer.cancel()

    def _work(self) -> None:
        """Encode what waits: nothing, if another thread has taken it already."""
        batch = self._take()
        start = perf_counter()
        try:
            maps = self._encode(batch)
        except BaseException as error:  # the clients wait for it
            maps = [passable(error)] * len(batch)
        for waiting, found in zip(batch, maps, strict=True):
            if isinstance(found, BaseException):
                waiting.answer.set_exception(found)
            else:
                waiting.answer.set_result(Timed(found, ms_since(start)))

    def _take(self) -> list[_Waiting]:
        batch, left = list[_Waiting](), self._max_pixels
        with self._taking:
            while self._waiting and len(batch) < self._most_images and self._waiting[0].num_pixels <= left:
                waiting = self._waiting.popleft()
                if waiting.answer.set_running_or_notify_cancel():
                    batch.append(waiting)
                    left -= waiting.num_pixels
        return batch

    def _encode(self, batch: list[_Waiting]) -> list[FeatureMap | BaseException]:
        """Return the feature map of each image, or why it has none."""
        opened = [self._open(waiting.image) for waiting in batch]
        good = [image for image in opened if not isinstance(image, ImageError)]
        maps = iter(_apart(self._captioner.encode(good)) if good else [])
        return [image if isinstance(image, ImageError) else next(maps) for image in opened]

    def _open(self, image: bytes) -> OpenImage | ImageError:
        try:
            return open_on(image, self._captioner.backend.device)
        except ImageError as error:
            return error


def _apart(features: FeatureMap) -> list[FeatureMap]:
    """Return the feature map of each image, which keeps none of the others' memory."""
    if len(features) == 1:
        return [features]
    return [
        replace(one, tokens=one.tokens.clone(), cls_attention_logits=one.cls_attention_logits.clone())
        for one in (features[number] for number in range(len(features)))
    ]
