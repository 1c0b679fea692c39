"""Dynamic batching: vectors of concurrent callers are decoded in one batch."""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass, field
from threading import TIMEOUT_MAX, Condition, Thread, current_thread
from time import monotonic
from typing import TYPE_CHECKING, TypeAlias, cast, overload

from runtime.errors import PatchcaptionError, RegionError
from runtime.features import FeatureMap, RegionVectors
from runtime.image import ImageSource
from runtime.options import (
    Channels,
    DecodingOptions,
    DescribeKeywords,
    OnBad,
    PoolingOptions,
    check_number,
    split_options,
)
from runtime.pipeline import Pipeline, image_whs_of
from runtime.results import Caption, RegionBatch, Regions, RegionsOfImages, with_missing
from runtime.serving.decoding_together import describe_together, require_own_prompts
from runtime.system.closeable import Closeable
from runtime.system.forks import is_forked
from runtime.system.handover import Handover
from runtime.system.threads import call_in_thread, close_at_exit, passable

if TYPE_CHECKING:
    from typing_extensions import Unpack

Captions: TypeAlias = "list[Caption] | list[list[Caption]]"

_LONGEST_WAIT_MS = 3_600_000


@dataclass(frozen=True, eq=False)
class _Request:
    """The vectors of one caller, and the captions to come.

    Attributes:
        batch: the regions that the caller gave.
        errors: for each region, why it has no vector.
        due: when it must not wait for others any longer, by `time.monotonic`.
        handover: of the vectors, by the caller's thread.
        answer: the captions of all regions, in the nesting that these were given in.
    """

    vectors: RegionVectors
    batch: RegionBatch
    errors: list[RegionError | None]
    options: DecodingOptions
    due: float
    handover: Handover
    answer: Future[Captions] = field(default_factory=Future)

    def is_like(self, other: _Request) -> bool:
        """Return whether both can be decoded in one batch."""
        return self.options == other.options and self.vectors.space == other.vectors.space

    def finish(self, captions: list[Caption] | BaseException) -> None:
        """Answer with the captions of the regions that have a vector, or with why there are none."""
        try:
            if isinstance(captions, BaseException):
                self.answer.set_exception(passable(captions))
            else:
                self.answer.set_result(self.batch.unflatten(with_missing(captions, self.errors)))
        except BaseException as error:
            if not self.answer.done():
                raise
            # Of a callback of this caller's, with which the others have nothing to do.
            threading.excepthook(threading.ExceptHookArgs((type(error), error, error.__traceback__, current_thread())))


class Batching(Closeable):
    """A captioner shared by many callers, whose regions are decoded in common. Made by `Captioner.batching`.

    Every method may be called from any thread. A call that fails, times out or is cancelled does not affect others.

    Args:
        max_wait_ms: how long the first request of a batch waits for others.
        max_regions: the batch size at which a batch waits no longer.

    Example:
        >>> with captioner.batching(max_wait_ms=2) as batching:
        ...     batching.caption(scene, [Box(276, 174, 507, 399)])[0].text
        'a large striped red triangle'
    """

    def __init__(self, pipeline: Pipeline, max_wait_ms: float, max_regions: int) -> None:
        wait_s = check_number("max_wait_ms", max_wait_ms, 0, _LONGEST_WAIT_MS) / 1000
        self._pipeline = pipeline
        self._worker = _BatchWorker(pipeline, wait_s, int(check_number("max_regions", max_regions, 1, whole=True)))
        weakref.finalize(self, self._worker.stop)

    @overload
    def caption(  # type: ignore[overload-overlap]  # a list of arrays may be either
        self,
        images: ImageSource,
        regions: Regions,
        timeout_s: float | None = None,
        *,
        channels: Channels = "rgb",
        on_bad: OnBad = "raise",
        **options: Unpack[DescribeKeywords],
    ) -> list[Caption]: ...
    @overload
    def caption(
        self,
        images: Sequence[ImageSource],
        regions: RegionsOfImages,
        timeout_s: float | None = None,
        *,
        channels: Channels = "rgb",
        on_bad: OnBad = "raise",
        **options: Unpack[DescribeKeywords],
    ) -> list[list[Caption]]: ...

    def caption(
        self,
        images: ImageSource | Sequence[ImageSource],
        regions: Regions | RegionsOfImages,
        timeout_s: float | None = None,
        *,
        channels: Channels = "rgb",
        on_bad: OnBad = "raise",
        **options: Unpack[DescribeKeywords],
    ) -> list[Caption] | list[list[Caption]]:
        """Do what `Captioner.caption` does, decoded together with what others ask for.

        Args:
            timeout_s: how long to wait for the captions; None for as long as it takes.

        Raises:
            TimeoutError: the captions were not there in time.
            PatchcaptionError: this batching was closed, or ``timeout_s`` is no number from 0 on.

        Example:
            >>> with captioner.batching() as batching:
            ...     batching.caption(scene, [Box(276, 174, 507, 399)], timeout_s=30)[0].text
            'a large striped red triangle'
        """
        return self.describe(self._pipeline.encoder(images, channels), regions, timeout_s, on_bad=on_bad, **options)

    @overload
    def describe(  # type: ignore[overload-overlap]  # a list of arrays may be either
        self,
        features: FeatureMap,
        regions: Regions,
        timeout_s: float | None = None,
        *,
        on_bad: OnBad = "raise",
        **options: Unpack[DescribeKeywords],
    ) -> list[Caption]: ...
    @overload
    def describe(
        self,
        features: FeatureMap,
        regions: RegionsOfImages,
        timeout_s: float | None = None,
        *,
        on_bad: OnBad = "raise",
        **options: Unpack[DescribeKeywords],
    ) -> list[list[Caption]]: ...

    def describe(
        self,
        features: FeatureMap,
        regions: Regions | RegionsOfImages,
        timeout_s: float | None = None,
        *,
        on_bad: OnBad = "raise",
        **options: Unpack[DescribeKeywords],
    ) -> list[Caption] | list[list[Caption]]:
        """Do what `Captioner.describe` does, decoded together with what others ask for; raises as `caption`.

        Example:
            >>> with captioner.batching() as batching:
            ...     batching.describe(captioner.encode(scene), [Point(350, 330)])[0].text
            'a large striped red triangle'
        """
        longest_s = _longest_wait_s(timeout_s)
        self._worker.require_other_thread()
        answer = self._submit(features, RegionBatch.of(regions, image_whs_of(features)), options, on_bad)
        try:
            return answer.result(longest_s)
        except FutureTimeoutError:  # TimeoutError itself from Python 3.11 on
            answer.cancel()
            raise TimeoutError(f"no captions after {timeout_s} s; others of the batch get theirs") from None

    async def acaption(
        self,
        images: ImageSource,
        regions: Regions,
        *,
        channels: Channels = "rgb",
        on_bad: OnBad = "raise",
        **options: Unpack[DescribeKeywords],
    ) -> list[Caption]:
        """Do what `caption` does for one image in asyncio: the event loop stays free.

        Cancelling it does not affect others.

        Example:
            >>> async def both(batching):
            ...     asked = [batching.acaption(scene, [region]) for region in (Point(350, 330), WholeImage())]
            ...     return [captions[0].text for captions in await asyncio.gather(*asked)]
            >>> with captioner.batching() as batching:
            ...     asyncio.run(both(batching))
            ['a large striped red triangle', 'five shapes on a checked white background']
        """
        handover = Handover([images])

        def submit() -> Future[Captions]:
            handover.receive()
            features = self._pipeline.encoder(images, channels)
            return self._submit(features, RegionBatch.of(regions, image_whs_of(features)), options, on_bad)

        return await _answer_of(submit)

    async def adescribe(
        self, features: FeatureMap, regions: Regions, *, on_bad: OnBad = "raise", **options: Unpack[DescribeKeywords]
    ) -> list[Caption]:
        """Do what `describe` does for one image in asyncio.

        Example:
            >>> with captioner.batching() as batching:
            ...     asyncio.run(batching.adescribe(captioner.encode(scene), [Point(350, 330)]))[0].text
            'a large striped red triangle'
        """
        batch = RegionBatch.of(regions, image_whs_of(features))
        handover = Handover([features.tokens, features.cls_attention_logits, *(features.images or ())])

        def submit() -> Future[Captions]:
            handover.receive()
            return self._submit(features, batch, options, on_bad)

        return await _answer_of(submit)

    def submit(
        self, features: FeatureMap, regions: Regions, *, on_bad: OnBad = "raise", **options: Unpack[DescribeKeywords]
    ) -> Future[list[Caption]]:
        """Do what `describe` does for one image, but do not wait: return the captions to come.

        The regions are pooled at once, in the calling thread. A future that is cancelled does not affect others.

        Raises:
            RegionError, OptionError, PatchcaptionError: as `describe`, at once.

        Example:
            >>> with captioner.batching() as batching:
            ...     asked = [batching.submit(features, [region]) for region in (Point(350, 330), WholeImage())]
            ...     [answer.result()[0].text for answer in asked]
            ['a large striped red triangle', 'five shapes on a checked white background']
        """
        answer = self._submit(features, RegionBatch.of(regions, image_whs_of(features)), options, on_bad)
        return cast("Future[list[Caption]]", answer)

    @property
    def is_open(self) -> bool:
        """Whether it takes requests: it was not closed, and its thread lives."""
        return self._worker.is_open

    def close(self) -> None:
        """Answer the waiting requests and take no more. The captioner stays open.

        One that nobody refers to any more is closed too.

        Example:
            >>> batching = captioner.batching()
            >>> batching.close()
        """
        self._worker.close()

    def _submit(
        self, features: FeatureMap, batch: RegionBatch, options: DescribeKeywords, on_bad: OnBad
    ) -> Future[Captions]:
        """Return the captions to come. Errors of regions and options are raised here, and affect no other caller."""
        pooling, decoding = split_options(options, PoolingOptions, DecodingOptions)
        require_own_prompts(decoding)
        vectors, errors = self._pipeline.pool(features, batch, pooling, on_bad)
        return self._worker.submit(vectors, batch, errors, decoding)


class _BatchWorker(Closeable):
    """The thread behind a batching. It holds no reference to it, so that it ends when that is dropped."""

    def __init__(self, pipeline: Pipeline, wait_s: float, max_regions: int) -> None:
        self._pipeline, self._wait_s, self._max_regions = pipeline, wait_s, max_regions
        self._waiting: deque[_Request] = deque()
        self._changed = Condition()
        self._is_closed = False
        self._death: BaseException | None = None
        self._thread = Thread(target=self._work, name="patchcaption batching", daemon=True)
        self._thread.start()
        close_at_exit(self)

    @property
    def is_open(self) -> bool:
        return not self._is_closed

    def submit(
        self,
        vectors: RegionVectors,
        batch: RegionBatch,
        errors: list[RegionError | None],
        options: DecodingOptions,
    ) -> Future[Captions]:
        """Return the captions to come.

        Raises:
            PatchcaptionError: it was closed, or its thread has ended.
        """
        request = _Request(vectors, batch, errors, options, monotonic() + self._wait_s, Handover([vectors.data]))
        with self._changed:
            if self._is_closed:
                raise PatchcaptionError(
                    "this batching was closed; make another with Captioner.batching"
                    if self._death is None
                    else f"the thread of this batching has ended: {self._death!r}; make another with Captioner.batching"
                ) from self._death
            self._waiting.append(request)
            self._changed.notify_all()
        return request.answer

    def require_other_thread(self) -> None:
        """Refuse to wait in the thread that answers, where callbacks of futures run.

        Raises:
            PatchcaptionError: this is that thread.
        """
        if current_thread() is self._thread:
            raise PatchcaptionError(
                "a callback of a future cannot wait for captions of its own batching, whose thread runs it; use submit"
            )

    def stop(self) -> None:
        """Let the thread answer the waiting requests and end."""
        if is_forked():  # the thread is the parent's
            return
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()

    def close(self) -> None:
        """Stop, and wait for the end; a callback of a future, which the thread itself runs, does not."""
        self.stop()
        if not is_forked() and current_thread() is not self._thread:
            self._thread.join()

    def _work(self) -> None:
        batch: list[_Request] = []
        try:
            while batch := self._next_batch():
                self._answer_all([one for one in batch if one.answer.set_running_or_notify_cancel()])
        except BaseException as error:
            self._die(error, batch)

    def _die(self, error: BaseException, batch: Sequence[_Request]) -> None:
        """Give the error that ended the thread to all who wait and, by `_submit`, to all who come."""
        with self._changed:
            self._is_closed, self._death = True, error
            waiting = [*batch, *self._waiting]
            self._waiting.clear()
        for request in waiting:
            if not request.answer.done():
                request.finish(error)

    def _answer_all(self, batch: Sequence[_Request]) -> None:
        for request in batch:
            request.handover.receive()
        if not batch:
            return
        answers = describe_together(self._pipeline, [request.vectors for request in batch], batch[0].options)
        for request, answer in zip(batch, answers, strict=True):
            request.finish(answer)

    def _next_batch(self) -> list[_Request]:
        """Wait until enough like requests are there, or the first is due; return none when all is done."""
        with self._changed:
            while not self._waiting:
                if self._is_closed:
                    return []
                self._changed.wait()
            first = self._waiting[0]
            while not self._is_closed and (remaining_s := first.due - monotonic()) > 0:
                if sum(len(request.vectors) for request in self._requests_like(first)) >= self._max_regions:
                    break
                self._changed.wait(remaining_s)
            batch, regions = list[_Request](), 0
            for request in self._requests_like(first):
                if batch and regions + len(request.vectors) > self._max_regions:
                    break
                batch.append(request)
                regions += len(request.vectors)
            taken = set(map(id, batch))
            self._waiting = deque(request for request in self._waiting if id(request) not in taken)
            return batch

    def _requests_like(self, first: _Request) -> list[_Request]:
        return [request for request in self._waiting if request.is_like(first)]


def _longest_wait_s(timeout_s: float | None) -> float | None:
    """Return how long a caller waits for its captions, as `Future.result` takes it.

    Raises:
        PatchcaptionError: it is no number from 0 on.
    """
    if timeout_s is None:
        return None
    check_number("timeout_s", timeout_s, 0)
    return min(float(timeout_s), TIMEOUT_MAX)


async def _answer_of(submit: Callable[[], Future[Captions]]) -> list[Caption]:
    """Return the captions of one image's regions, which a thread of asyncio's submits."""
    return cast("list[Caption]", await asyncio.wrap_future(await call_in_thread(submit)))
