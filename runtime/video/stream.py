"""Captions over a stream of frames: reading, encoding and describing overlap, in bounded memory, in order."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, nullcontext
from dataclasses import dataclass
from threading import Thread
from time import monotonic
from typing import TypeAlias

from runtime.errors import ImageError, RegionError
from runtime.features import FeatureMap, RegionVectors
from runtime.options import DecodingOptions, PoolingOptions, StreamOptions
from runtime.pipeline import Pipeline
from runtime.regions.detections import RegionsLike, as_rows
from runtime.regions.rows import RegionRow
from runtime.results import Caption, caption_of
from runtime.system.closeable import Closeable
from runtime.system.forks import is_forked, require_own_engines
from runtime.system.handover import Handover
from runtime.system.threads import close_at_exit, join_all
from runtime.video.frames import Frame, Source
from runtime.video.queue import BoundedQueue, propagate_end
from runtime.video.reuse import CaptionReuse
from runtime.video.sources import FrameSource, open_source
from runtime.video.turns import Party, turns_of

RegionsOfFrames: TypeAlias = "RegionsLike | Callable[[Frame], RegionsLike]"

_WAITING_FRAMES = 2
"""Between two stages: enough that neither waits for the other's slowest frame, few enough to stay up to date."""

_SECONDS_TO_LEAVE = 1.0
"""How long `close` waits for what is not ours to return: a source that has no frame yet, a detector."""
_SECONDS_TO_FINISH = 30.0
"""How long it waits for the frame that is being encoded and described."""


@dataclass(frozen=True, eq=False)
class FrameCaptions:
    """A frame in words.

    Attributes:
        frame: its number, time and image.
        captions: of its regions, in their order; `Caption.reused` says which are those of an earlier frame.
        dropped: frames dropped since the one before, as they arrived faster than they could be described.
        latency_ms: from the moment the frame was read to its captions.
        error: None; or why the frame has no captions, where ``on_bad="skip"`` passed over it: it is no image, or has no
            list of regions. The reason of a single region is its `Caption.error`.

    Example:
        >>> result = next(captioner.stream([scene], [Point(350, 330)]))
        >>> result.frame.number, result.captions[0].text, result.dropped
        (0, 'a large striped red triangle', 0)
    """

    frame: Frame
    captions: list[Caption]
    dropped: int
    latency_ms: float
    error: str | None = None


class CaptionStream(Closeable):
    """Iterates over the described frames of a source. Made by `Captioner.stream`.

    Leave it by `close`, by the end of a `with` block or of the frames, or by dropping the last reference to it. An
    error of a stage is raised by the iteration, after the frames before it.

    Example:
        >>> with captioner.stream([scene] * 100, [WholeImage()]) as stream:
        ...     first = next(stream)
        >>> first.frame.number, stream.source.frame_count, stream.dropped
        (0, 100, 0)
    """

    def __init__(
        self,
        pipeline: Pipeline,
        source: FrameSource,
        regions: RegionsOfFrames,
        options: StreamOptions,
        pooling: PoolingOptions,
        decoding: DecodingOptions,
    ) -> None:
        require_own_engines()
        if not callable(regions):
            as_rows(regions, None)  # what is in no form of regions is no matter of a frame
        self._workers = _StreamWorkers(pipeline, open_source(source, options), regions, options, pooling, decoding)
        weakref.finalize(self, self._workers.stop)
        self._workers.start()

    @property
    def source(self) -> Source:
        """Where the frames come from: how many there are, and how many could not be decoded."""
        return self._workers.source

    @property
    def dropped(self) -> int:
        """Frames dropped so far, as they arrived faster than they could be described."""
        return self._workers.read.dropped

    @property
    def bad_frames(self) -> int:
        """Frames without captions so far, as they were no images or had no list of regions (``on_bad="skip"``)."""
        return self._workers.bad_frames

    @property
    def bad_regions(self) -> int:
        """Regions without a caption so far, as they had no place on their frame (``on_bad="skip"``)."""
        return self._workers.bad_regions

    def __iter__(self) -> Iterator[FrameCaptions]:
        return self

    def __next__(self) -> FrameCaptions:
        require_own_engines()
        try:
            done = self._workers.done.get()
        except BaseException:
            self.close()
            raise
        if done is None:
            self.close()
            raise StopIteration
        return done

    def close(self) -> None:
        """Stop reading and close the source; frames in progress are discarded.

        A source or detector that does not return within a second is left to end by itself.

        Example:
            >>> stream = captioner.stream([scene] * 100, [WholeImage()])
            >>> stream.close()
        """
        self._workers.close()


@dataclass(frozen=True, eq=False)
class _ReadFrame:
    """A frame, when it was read, by `time.monotonic`, and its image's handover by the thread that read it."""

    frame: Frame
    at: float
    handover: Handover


@dataclass(frozen=True, eq=False)
class _EncodingFrame:
    """A frame on its way through the backbone, its regions or why there are none, and the frames dropped before it."""

    read: _ReadFrame
    features: Future[FeatureMap]
    regions: RegionsLike | ImageError | RegionError
    dropped: int


class _StreamWorkers(Closeable):
    """The threads behind a stream. They hold no reference to it, so that they stop when it is dropped."""

    def __init__(
        self,
        pipeline: Pipeline,
        source: Source,
        regions: RegionsOfFrames,
        options: StreamOptions,
        pooling: PoolingOptions,
        decoding: DecodingOptions,
    ) -> None:
        self.source = source
        self._pipeline, self._regions, self._every = pipeline, regions, options.every
        self._pooling, self._decoding, self._skips = pooling, decoding, options.on_bad == "skip"
        self.bad_frames = self.bad_regions = 0
        self._is_left = False
        self._begin = Handover(device=pipeline.backend.device)  # frames may have been made on the caller's stream
        self._reuse = None if options.reuse is None else CaptionReuse(options.reuse)
        drops = (options.policy or ("drop" if source.is_live else "block")) == "drop"
        workers = options.workers or pipeline.encoder.default_callers()
        # Where frames wait, throughput counts; where they are dropped, how soon each is done.
        self._encode = pipeline.encoder if drops else pipeline.encoder.for_callers(workers)
        self.read: BoundedQueue[_ReadFrame] = BoundedQueue(_WAITING_FRAMES, drops)
        self.encoding: BoundedQueue[_EncodingFrame] = BoundedQueue(workers, drops=False)
        self.done: BoundedQueue[FrameCaptions] = BoundedQueue(_WAITING_FRAMES, drops=False)
        self._turns, self._party = turns_of(pipeline), Party()
        if self._turns is not None:
            self._turns.encoding.allow(workers)
        self._encoders = ThreadPoolExecutor(workers, "patchcaption encoding")
        self._threads = [
            Thread(target=stage, name=f"patchcaption {stage.__name__.strip('_')}", daemon=True)
            for stage in (self._read_all, self._encode_all, self._describe_all)
        ]

    def start(self) -> None:
        close_at_exit(self)
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Let every stage end at its next frame."""
        if is_forked():  # the stages, and what they hold, are the parent's
            return
        self.source.stop()
        for queue in (self.read, self.encoding, self.done):
            queue.stop()
        self._encoders.shutdown(wait=False, cancel_futures=True)

    def close(self) -> None:
        """Stop, and wait until the engines are free; a stage that waits for the source or the detector ends later."""
        self.stop()
        if is_forked() or self._is_left:
            return
        if not join_all(self._threads, _SECONDS_TO_LEAVE):
            join_all(self._threads[-1:], _SECONDS_TO_FINISH)
        self._is_left = True  # who closes it again need not wait as long again

    def _read_all(self) -> None:
        try:
            self._begin.receive()
            with closing(self.source.frames()) as frames:
                for frame in frames:
                    if frame.number % self._every:
                        continue
                    if not self.read.put(_ReadFrame(frame, monotonic(), Handover([frame.image]))):
                        break
            self.read.end()
        except BaseException as error:
            self.read.end(error)

    def _encode_all(self) -> None:
        """Start encoding each frame, and find its regions meanwhile, one frame after another."""
        with propagate_end(self.read, self.encoding):
            dropped_before = 0
            while (read := self.read.get()) is not None:
                dropped, dropped_before = self.read.dropped_at_get - dropped_before, self.read.dropped_at_get
                try:
                    features = self._encoders.submit(self._encode_frame, read)
                except RuntimeError:  # it was shut down
                    return
                read.handover.receive()
                try:
                    regions = self._find_regions(read.frame)
                except BaseException:
                    features.cancel()
                    raise
                if not self.encoding.put(_EncodingFrame(read, features, regions, dropped)):
                    return

    def _find_regions(self, frame: Frame) -> RegionsLike | ImageError | RegionError:
        try:
            return self._regions(frame) if callable(self._regions) else self._regions
        except (ImageError, RegionError) as error:  # a function that makes regions itself; judged with the others
            return error

    def _encode_frame(self, read: _ReadFrame) -> FeatureMap:
        read.handover.receive()
        with nullcontext() if self._turns is None else self._turns.encoding.turn(self._party):
            return self._encode(read.frame.image)

    def _describe_all(self) -> None:
        with propagate_end(self.encoding, self.done):
            try:
                while (encoding := self.encoding.get()) is not None:
                    if not self.done.put(self._describe(encoding)):
                        return
            finally:
                self._encoders.shutdown(cancel_futures=True)

    def _describe(self, encoding: _EncodingFrame) -> FrameCaptions:
        captions, reason = list[Caption](), None
        try:
            captions = self._captions(encoding)
        except (ImageError, RegionError) as error:
            if not self._skips:
                raise type(error)(f"frame {encoding.read.frame.number}: {error}") from None
            reason = str(error)
            self.bad_frames += 1
        latency_ms = 1000 * (monotonic() - encoding.read.at)
        return FrameCaptions(encoding.read.frame, captions, encoding.dropped, latency_ms, reason)

    def _captions(self, encoding: _EncodingFrame) -> list[Caption]:
        """Return a caption for each region, or the reason why there is none.

        Raises:
            ImageError, RegionError: the frame is no image, its regions are no list, or one has no place on the frame
                and is not to be skipped.
        """
        features = encoding.features.result()
        if isinstance(encoding.regions, (ImageError, RegionError)):
            raise encoding.regions
        rows = as_rows(encoding.regions, features.views[0].image_wh)
        with nullcontext() if self._turns is None else self._turns.describing.turn(self._party):
            return self._describe_rows(features, rows)

    def _describe_rows(self, features: FeatureMap, rows: Sequence[RegionRow]) -> list[Caption]:
        vectors, errors = self._pipeline.pooler.pool_rows(features, [row.region for row in rows], self._pooling)
        self._count_bad(errors)
        captions = iter(self._decode(vectors) if self._reuse is None else self._reuse.captions(vectors, self._decode))
        described = []
        for row, error in zip(rows, errors, strict=True):
            caption = next(captions) if error is None else Caption.missing(None, str(error))
            described.append(caption_of(row, caption))
        return described

    def _count_bad(self, errors: Sequence[RegionError | None]) -> None:
        for number, error in enumerate(errors):
            if error is not None and not self._skips:
                raise RegionError(f"region {number}: {error}")
            self.bad_regions += error is not None

    def _decode(self, vectors: RegionVectors) -> list[Caption]:
        return self._pipeline.describe_vectors(vectors, self._decoding)
