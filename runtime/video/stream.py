"""Captions over a stream of frames: reading, encoding and describing overlap, in bounded memory, in order."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from threading import Thread
from time import monotonic
from typing import TypeAlias

from runtime.errors import ImageError
from runtime.features import FeatureMap, RegionVectors
from runtime.options import DecodingOptions, PoolingOptions, StreamOptions
from runtime.pipeline import Pipeline
from runtime.regions import Region
from runtime.regions.detections import RegionsLike, as_regions
from runtime.results import Caption
from runtime.system.closeable import Closeable
from runtime.system.handover import Handover
from runtime.video.queue import BoundedQueue, propagate_end
from runtime.video.reuse import CaptionReuse
from runtime.video.sources import Frame, FrameSource, Source, open_source

RegionsOfFrames: TypeAlias = "RegionsLike | Callable[[Frame], RegionsLike]"

_WAITING_FRAMES = 2
"""Between two stages: enough that neither waits for the other's slowest frame, few enough to stay up to date."""

_SMALL_BACKBONE_BYTES = 32 << 20
"""Up to this size a backbone leaves cores idle at one frame at a time; a larger one is not worth opening twice."""


@dataclass(frozen=True, eq=False)
class FrameCaptions:
    """A frame in words.

    Attributes:
        frame: its number, time and image.
        captions: of its regions, in their order; `Caption.reused` says which are those of an earlier frame.
        dropped: frames dropped since the one before, as they arrived faster than they could be described.
        latency_ms: from the moment the frame was read to its captions.

    Example:
        >>> result = next(captioner.stream([scene], [Point(350, 330)]))
        >>> result.frame.number, result.captions[0].text, result.dropped
        (0, 'a large striped red triangle', 0)
    """

    frame: Frame
    captions: list[Caption]
    dropped: int
    latency_ms: float


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
        self._workers = _StreamWorkers(pipeline, open_source(source), regions, options, pooling, decoding)
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

    def __iter__(self) -> Iterator[FrameCaptions]:
        return self

    def __next__(self) -> FrameCaptions:
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

        Example:
            >>> stream = captioner.stream([scene] * 100, [WholeImage()])
            >>> stream.close()
        """
        self._workers.stop()
        self._workers.join()


@dataclass(frozen=True, eq=False)
class _ReadFrame:
    """A frame, when it was read, by `time.monotonic`, and its image's handover by the thread that read it."""

    frame: Frame
    at: float
    handover: Handover


@dataclass(frozen=True, eq=False)
class _EncodingFrame:
    """A frame on its way through the backbone, its regions, and how many frames were dropped before it."""

    read: _ReadFrame
    features: Future[FeatureMap]
    regions: RegionsLike
    dropped: int

    def wait(self) -> FeatureMap:
        """Return the frame's feature map.

        Raises:
            ImageError: names the frame.
        """
        try:
            return self.features.result()
        except ImageError as error:
            raise ImageError(f"frame {self.read.frame.number}: {error}") from None


class _StreamWorkers:
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
        self._pooling, self._decoding = pooling, decoding
        self._begin = Handover(device=pipeline.backend.device)  # frames may have been made on the caller's stream
        self._reuse = None if options.reuse is None else CaptionReuse(options.reuse)
        drops = (options.policy or ("drop" if source.is_live else "block")) == "drop"
        workers = options.workers or _default_workers(pipeline)
        # Where frames wait, throughput counts; where they are dropped, how soon each is done.
        self._encode = pipeline.encoder if drops else pipeline.encoder.for_callers(workers)
        self.read: BoundedQueue[_ReadFrame] = BoundedQueue(_WAITING_FRAMES, drops)
        self.encoding: BoundedQueue[_EncodingFrame] = BoundedQueue(workers, drops=False)
        self.done: BoundedQueue[FrameCaptions] = BoundedQueue(_WAITING_FRAMES, drops=False)
        self._encoders = ThreadPoolExecutor(workers, "patchcaption encoding")
        self._threads = [
            Thread(target=stage, name=f"patchcaption {stage.__name__.strip('_')}", daemon=True)
            for stage in (self._read_all, self._encode_all, self._describe_all)
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Let every stage end at its next frame."""
        for queue in (self.read, self.encoding, self.done):
            queue.stop()
        self._encoders.shutdown(wait=False)

    def join(self) -> None:
        for thread in self._threads:
            thread.join()
        self._encoders.shutdown()

    def _read_all(self) -> None:
        self._begin.receive()
        frames = self.source.frames()
        try:
            for frame in frames:
                if frame.number % self._every:
                    continue
                if not self.read.put(_ReadFrame(frame, monotonic(), Handover([frame.image]))):
                    break
            self.read.end()
        except Exception as error:
            self.read.end(error)
        finally:
            if hasattr(frames, "close"):
                frames.close()

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
                    regions = self._regions(read.frame) if callable(self._regions) else self._regions
                except Exception:
                    features.cancel()
                    raise
                if not self.encoding.put(_EncodingFrame(read, features, regions, dropped)):
                    return

    def _encode_frame(self, read: _ReadFrame) -> FeatureMap:
        read.handover.receive()
        return self._encode(read.frame.image)

    def _describe_all(self) -> None:
        with propagate_end(self.encoding, self.done):
            while (encoding := self.encoding.get()) is not None:
                features = encoding.wait()
                regions = as_regions(encoding.regions, features.views[0].image_wh)
                captions = self._describe(features, regions)
                latency_ms = 1000 * (monotonic() - encoding.read.at)
                if not self.done.put(FrameCaptions(encoding.read.frame, captions, encoding.dropped, latency_ms)):
                    return

    def _describe(self, features: FeatureMap, regions: Sequence[Region]) -> list[Caption]:
        vectors = self._pipeline.pooler(features, [list(regions)], self._pooling)

        def decode(changed: RegionVectors) -> list[Caption]:
            return self._pipeline.describe_vectors(changed, self._decoding)

        captions = decode(vectors) if self._reuse is None else self._reuse.captions(vectors, decode)
        return [replace(caption, region=region) for caption, region in zip(captions, regions, strict=True)]


def _default_workers(pipeline: Pipeline) -> int:
    manifest = pipeline.bundle.manifest
    file = manifest.engines["backbone"].file
    backbone_bytes = sum(record.bytes for name, record in manifest.files.items() if name.startswith(file))
    on_cpu = pipeline.backend.device.type == "cpu"
    return 2 if on_cpu and backbone_bytes <= _SMALL_BACKBONE_BYTES else 1
