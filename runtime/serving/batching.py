"""Vectors of several callers become words together: a batch of 16 takes little longer than one caption alone."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass
from threading import Condition, Thread
from time import monotonic
from types import TracebackType
from typing import TYPE_CHECKING, overload

import torch
from torch import Tensor

from runtime.errors import PatchcaptionError
from runtime.features import FeatureMap
from runtime.image import ImageSource
from runtime.options import DescribeOptions
from runtime.results import Caption, Regions, RegionsOfImages, as_asked
from runtime.wording import Wording, parted

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from runtime.captioner import Captioner


@dataclass(frozen=True, eq=False)
class _Request:
    """What one caller waits for.

    Attributes:
        vectors: (R, D).
        due: when it must not wait for others any longer, by `time.monotonic`.
    """

    vectors: Tensor
    wording: Wording
    due: float
    answer: Future[list[Caption]]


class Batching:
    """A captioner shared by many callers, whose regions are decoded in common. Made by `Captioner.batching`.

    Every method may be called from any thread. A call that fails, times out or is cancelled harms no other.

    Args:
        max_wait_ms: how long the first of a batch waits for others.
        max_regions: a batch that has so many waits no longer.

    Example:
        >>> with captioner.batching(max_wait_ms=2) as batching:
        ...     batching.caption(scene, [Box(276, 174, 507, 399)])[0].text
        'a large striped red triangle'
    """

    def __init__(self, captioner: Captioner, max_wait_ms: float, max_regions: int) -> None:
        if not max_wait_ms >= 0:
            raise PatchcaptionError(f"max_wait_ms: expected at least 0, got {max_wait_ms}")
        if max_regions < 1:
            raise PatchcaptionError(f"max_regions: expected at least 1, got {max_regions}")
        self._captioner, self._wait_s, self._max_regions = captioner, max_wait_ms / 1000, max_regions
        self._waiting: deque[_Request] = deque()
        self._changed = Condition()
        self._is_closed = False
        self._worker = Thread(target=self._work, name="patchcaption batching", daemon=True)
        self._worker.start()

    @overload
    def caption(
        self, images: ImageSource, regions: Regions, timeout_s: float | None = None, **options: Unpack[DescribeOptions]
    ) -> list[Caption]: ...
    @overload
    def caption(
        self,
        images: Sequence[ImageSource],
        regions: RegionsOfImages,
        timeout_s: float | None = None,
        **options: Unpack[DescribeOptions],
    ) -> list[list[Caption]]: ...

    def caption(
        self,
        images: ImageSource | Sequence[ImageSource],
        regions: Regions | RegionsOfImages,
        timeout_s: float | None = None,
        **options: Unpack[DescribeOptions],
    ) -> list[Caption] | list[list[Caption]]:
        """`Captioner.caption`, decoded with what others ask for.

        Args:
            timeout_s: how long to wait for the words; None for as long as it takes.

        Raises:
            TimeoutError: the words were not there in time.

        Example:
            >>> with captioner.batching() as batching:
            ...     batching.caption(scene, [Box(276, 174, 507, 399)], timeout_s=30)[0].text
            'a large striped red triangle'
        """
        return self.describe(self._captioner.encode(images), regions, timeout_s, **options)

    @overload
    def describe(
        self, features: FeatureMap, regions: Regions, timeout_s: float | None = None, **options: Unpack[DescribeOptions]
    ) -> list[Caption]: ...
    @overload
    def describe(
        self,
        features: FeatureMap,
        regions: RegionsOfImages,
        timeout_s: float | None = None,
        **options: Unpack[DescribeOptions],
    ) -> list[list[Caption]]: ...

    def describe(
        self,
        features: FeatureMap,
        regions: Regions | RegionsOfImages,
        timeout_s: float | None = None,
        **options: Unpack[DescribeOptions],
    ) -> list[Caption] | list[list[Caption]]:
        """`Captioner.describe`, decoded with what others ask for; `caption` says what is raised.

        Example:
            >>> with captioner.batching() as batching:
            ...     batching.describe(captioner.encode(scene), [Point(350, 330)])[0].text
            'a large striped red triangle'
        """
        answer = self._asked(features, regions, options)
        try:
            return as_asked(features, regions, answer.result(timeout_s))
        except FutureTimeoutError:  # TimeoutError itself from Python 3.11 on
            answer.cancel()
            raise TimeoutError(f"no words after {timeout_s} s; others of the batch get theirs") from None

    async def acaption(
        self, images: ImageSource, regions: Regions, **options: Unpack[DescribeOptions]
    ) -> list[Caption]:
        """`caption` of one image for asyncio: the event loop goes on meanwhile. Cancelling it harms no other.

        Example:
            >>> async def both(batching):
            ...     asked = [batching.acaption(scene, [region]) for region in (Point(350, 330), WholeImage())]
            ...     return [captions[0].text for captions in await asyncio.gather(*asked)]
            >>> with captioner.batching() as batching:
            ...     asyncio.run(both(batching))
            ['a large striped red triangle', 'five shapes on a checked white background']
        """
        features = await asyncio.to_thread(self._captioner.encode, images)
        return await self.adescribe(features, regions, **options)

    async def adescribe(
        self, features: FeatureMap, regions: Regions, **options: Unpack[DescribeOptions]
    ) -> list[Caption]:
        """`describe` of one image for asyncio.

        Example:
            >>> with captioner.batching() as batching:
            ...     asyncio.run(batching.adescribe(captioner.encode(scene), [Point(350, 330)]))[0].text
            'a large striped red triangle'
        """
        answer = await asyncio.to_thread(self._asked, features, regions, options)
        described = await asyncio.wrap_future(answer)
        return as_asked(features, regions, described)

    def close(self) -> None:
        """Answers what waits, and takes no more. The captioner stays open.

        Example:
            >>> batching = captioner.batching()
            >>> batching.close()
        """
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        self._worker.join()

    def __enter__(self) -> Batching:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _asked(
        self, features: FeatureMap, regions: Regions | RegionsOfImages, options: DescribeOptions
    ) -> Future[list[Caption]]:
        """The answer to come. What is wrong with the regions or options is raised here, where it harms nobody else."""
        how, wording = parted(options)
        vectors = self._captioner.vectors(features, regions, **how)
        answer: Future[list[Caption]] = Future()
        with self._changed:
            if self._is_closed:
                raise PatchcaptionError("this batching was closed; make another with Captioner.batching")
            self._waiting.append(_Request(vectors, wording, monotonic() + self._wait_s, answer))
            self._changed.notify_all()
        return answer

    def _work(self) -> None:
        while batch := self._next_batch():
            going = [request for request in batch if request.answer.set_running_or_notify_cancel()]
            try:
                self._answer(going)
            except Exception:  # of one of them; each alone, so that it stays that one's
                for request in going:
                    self._answer_alone(request)

    def _next_batch(self) -> list[_Request]:
        """Waits for requests of one wording that are due, or enough; none when all is done."""
        with self._changed:
            while not self._waiting:
                if self._is_closed:
                    return []
                self._changed.wait()
            first = self._waiting[0]
            while not self._is_closed and (left_s := first.due - monotonic()) > 0:
                if sum(len(request.vectors) for request in self._alike(first)) >= self._max_regions:
                    break
                self._changed.wait(left_s)
            batch, regions = list[_Request](), 0
            for request in self._alike(first):
                if batch and regions + len(request.vectors) > self._max_regions:
                    break
                batch.append(request)
                regions += len(request.vectors)
            taken = set(map(id, batch))
            self._waiting = deque(request for request in self._waiting if id(request) not in taken)
            return batch

    def _alike(self, first: _Request) -> list[_Request]:
        return [request for request in self._waiting if request.wording == first.wording]

    def _answer(self, batch: Sequence[_Request]) -> None:
        if not batch:
            return
        captions = iter(self._captioner.words(torch.cat([request.vectors for request in batch]), batch[0].wording))
        answers = [[next(captions) for _ in request.vectors] for request in batch]
        for request, answer in zip(batch, answers, strict=True):
            request.answer.set_result(answer)

    def _answer_alone(self, request: _Request) -> None:
        try:
            request.answer.set_result(self._captioner.words(request.vectors, request.wording))
        except Exception as error:
            request.answer.set_exception(error)
