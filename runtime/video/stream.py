"""Captions over a stream of frames: reading, encoding and describing overlap, in bounded memory, in order."""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from threading import Condition, Thread
from time import monotonic
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeAlias, TypeVar

from torch import Tensor

from runtime.errors import ImageError, PatchcaptionError
from runtime.features import FeatureMap
from runtime.options import DescribeOptions
from runtime.regions import Region
from runtime.regions.detections import RegionsLike, as_regions
from runtime.results import Caption
from runtime.video.reuse import CaptionReuse
from runtime.video.sources import Frame, FrameSource, Source, open_source
from runtime.wording import parted

if TYPE_CHECKING:
    from runtime.captioner import Captioner

Policy: TypeAlias = Literal["drop", "block"]
RegionsOfFrames: TypeAlias = "RegionsLike | Callable[[Frame], RegionsLike]"

_WAITING_FRAMES = 2
"""Between two stages: enough that neither waits for the other's slowest frame, few enough to be up to date."""

_SMALL_BACKBONE_BYTES = 32 << 20
"""Up to here a backbone leaves cores idle at one frame at a time; a larger one does not: not worth having twice."""

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class FrameCaptions:
    """A frame in words.

    Attributes:
        frame: its number, time and image.
        captions: of its regions, in their order; `Caption.reused` says which are those of an earlier frame.
        dropped: frames that were left out since the one before, as they came faster than they could be described.
        latency_ms: from the moment that the frame was read to its captions.

    Example:
        >>> result = next(captioner.stream([scene], [Point(350, 330)]))
        >>> result.frame.number, result.captions[0].text, result.dropped
        (0, 'a large striped red triangle', 0)
    """

    frame: Frame
    captions: list[Caption]
    dropped: int
    latency_ms: float


@dataclass(frozen=True)
class StreamOptions:
    """How a stream is followed.

    Attributes:
        policy: what happens to frames that come faster than they are described: "drop" leaves out the oldest that wait,
            "block" lets the source wait; None is "drop" for what is lost otherwise (cameras, addresses, iterators) and
            "block" for files, folders and lists, which can wait.
        every: only each n-th frame is looked at.
        reuse: the cosine of a region's vector and of the one that a caption was decoded from, from which on the caption
            is used again; None decodes each frame anew.
        workers: frames that are encoded at once; None is 2 for a small backbone on a CPU, whose cores it makes busier,
            and else 1. Where frames wait, `Captioner.encoder` opens the backbone for so many.

    Raises:
        PatchcaptionError: an option has no such value.
    """

    policy: Policy | None = None
    every: int = 1
    reuse: float | None = 0.995
    workers: int | None = None

    def __post_init__(self) -> None:
        if self.policy not in (None, "drop", "block"):
            raise PatchcaptionError(f'policy: expected "drop" or "block", got {self.policy!r}')
        for name in ("every", "workers"):
            number = getattr(self, name)
            if number is not None and number < 1:
                raise PatchcaptionError(f"{name}: expected at least 1, got {number}")
        if self.reuse is not None and not 0 < self.reuse <= 1:
            raise PatchcaptionError(f"reuse: expected a cosine above 0 and up to 1, or None, got {self.reuse}")


class CaptionStream:
    """Iterates over the described frames of a source. Made by `Captioner.stream`; leave it by `close`, by the end of a
    `with` block or of the frames, or by letting go of it.

    What goes wrong in a stage is raised by the iteration, after the frames before it.

    Example:
        >>> with captioner.stream([scene] * 100, [WholeImage()]) as stream:
        ...     first = next(stream)
        >>> first.frame.number, stream.source.frame_count, stream.dropped
        (0, 100, 0)
    """

    def __init__(
        self,
        captioner: Captioner,
        source: FrameSource,
        regions: RegionsOfFrames,
        options: StreamOptions,
        describe: DescribeOptions,
    ) -> None:
        self._stages = _Stages(captioner, open_source(source), regions, options, describe)
        weakref.finalize(self, self._stages.stop)
        self._stages.start()

    @property
    def source(self) -> Source:
        """Where the frames come from: how many there are, and how many were broken."""
        return self._stages.source

    @property
    def dropped(self) -> int:
        """Frames that were left out so far, as they came faster than they could be described."""
        return self._stages.read.dropped

    def __iter__(self) -> Iterator[FrameCaptions]:
        return self

    def __next__(self) -> FrameCaptions:
        try:
            done = self._stages.done.get()
        except BaseException:
            self.close()
            raise
        if done is None:
            self.close()
            raise StopIteration
        return done

    def close(self) -> None:
        """Stops reading and gives the source back; frames that are on their way are lost.

        Example:
            >>> stream = captioner.stream([scene] * 100, [WholeImage()])
            >>> stream.close()
        """
        self._stages.stop()
        self._stages.join()

    def __enter__(self) -> CaptionStream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _workers_for(captioner: Captioner) -> int:
    file, files = captioner.manifest.backbone.file, captioner.manifest.files
    backbone_bytes = sum(record.bytes for name, record in files.items() if name.startswith(file))
    on_cpu = captioner.backend.device.type == "cpu"
    return 2 if on_cpu and backbone_bytes <= _SMALL_BACKBONE_BYTES else 1


class _Stages:
    """The threads behind a stream, which know nothing of it: they stop when it is let go."""

    def __init__(
        self,
        captioner: Captioner,
        source: Source,
        regions: RegionsOfFrames,
        options: StreamOptions,
        describe: DescribeOptions,
    ) -> None:
        self.source = source
        self._captioner, self._regions, self._every = captioner, regions, options.every
        self._vector_options, self._wording = parted(describe)
        self._reuse = None if options.reuse is None else CaptionReuse(options.reuse)
        drops = (options.policy or ("drop" if source.is_live else "block")) == "drop"
        workers = options.workers or _workers_for(captioner)
        # Where frames wait, many together count; where they are dropped, how soon each is done.
        self._encode = captioner.encode if drops else captioner.encoder(workers)
        self.read: _Queue[_Read] = _Queue(_WAITING_FRAMES, drops)
        self.encoding: _Queue[_Encoding] = _Queue(workers, drops=False)
        self.done: _Queue[FrameCaptions] = _Queue(_WAITING_FRAMES, drops=False)
        self._encoders = ThreadPoolExecutor(workers, "patchcaption encoding")
        self._threads = [
            Thread(target=stage, name=f"patchcaption {stage.__name__.strip('_')}", daemon=True)
            for stage in (self._read_all, self._encode_all, self._describe_all)
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Lets every stage end at its next frame."""
        for queue in (self.read, self.encoding, self.done):
            queue.stop()
        self._encoders.shutdown(wait=False)

    def join(self) -> None:
        for thread in self._threads:
            thread.join()
        self._encoders.shutdown()

    def _read_all(self) -> None:
        frames = self.source.frames()
        try:
            for frame in frames:
                if frame.number % self._every == 0 and not self.read.put(_Read(frame, monotonic())):
                    break
            self.read.end()
        except Exception as error:
            self.read.end(error)
        finally:
            if hasattr(frames, "close"):
                frames.close()

    def _encode_all(self) -> None:
        """Begins to encode frames, and finds their regions meanwhile, one after another."""
        with _passing_on(self.read, self.encoding):
            dropped_before = 0
            while (read := self.read.get()) is not None:
                dropped, dropped_before = self.read.dropped_at_get - dropped_before, self.read.dropped_at_get
                try:
                    features = self._encoders.submit(self._encode, read.frame.image)
                except RuntimeError:  # it was shut down
                    return
                try:
                    found = self._regions(read.frame) if callable(self._regions) else self._regions
                except Exception:
                    features.cancel()
                    raise
                if not self.encoding.put(_Encoding(read, features, found, dropped)):
                    return

    def _describe_all(self) -> None:
        with _passing_on(self.encoding, self.done):
            while (encoding := self.encoding.get()) is not None:
                features = _encoded(encoding)
                regions = as_regions(encoding.found, features.views[0].image_wh)
                captions = self._described(features, regions)
                latency_ms = 1000 * (monotonic() - encoding.read.at)
                if not self.done.put(FrameCaptions(encoding.read.frame, captions, encoding.dropped, latency_ms)):
                    return

    def _described(self, features: FeatureMap, regions: Sequence[Region]) -> list[Caption]:
        vectors = self._captioner.vectors(features, list(regions), **self._vector_options)

        def words(changed: Tensor) -> list[Caption]:
            return self._captioner.words(changed, self._wording)

        captions = words(vectors) if self._reuse is None else self._reuse.words(vectors, words)
        return [replace(caption, region=region) for caption, region in zip(captions, regions, strict=True)]


@dataclass(frozen=True, eq=False)
class _Read:
    """A frame, and when it was there, by `time.monotonic`."""

    frame: Frame
    at: float


@dataclass(frozen=True, eq=False)
class _Encoding:
    """A frame on its way through the backbone, what its regions are taken from, and the frames dropped before it."""

    read: _Read
    features: Future[FeatureMap]
    found: RegionsLike
    dropped: int


def _encoded(encoding: _Encoding) -> FeatureMap:
    try:
        return encoding.features.result()
    except ImageError as error:
        raise ImageError(f"frame {encoding.read.frame.number}: {error}") from None


class _Queue(Generic[T]):
    """At most so many things between two threads.

    Args:
        drops: whether the oldest is dropped where there is no room; else the giver waits.
    """

    def __init__(self, room: int, drops: bool) -> None:
        self._room, self._drops = room, drops
        self._things: deque[T] = deque()
        self._changed = Condition()
        self._has_ended, self._is_stopped = False, False
        self._error: Exception | None = None
        self.dropped = 0
        self.dropped_at_get = 0

    def put(self, thing: T) -> bool:
        """Whether there is still somebody who takes it."""
        with self._changed:
            while len(self._things) >= self._room and not self._is_stopped:
                if self._drops:
                    self._things.popleft()
                    self.dropped += 1
                else:
                    self._changed.wait()
            if not self._is_stopped:
                self._things.append(thing)
                self._changed.notify_all()
            return not self._is_stopped

    def end(self, error: Exception | None = None) -> None:
        """Nothing more will come; ``error`` is raised behind what is there."""
        with self._changed:
            self._has_ended, self._error = True, error
            self._changed.notify_all()

    def stop(self) -> None:
        """Nobody will take any more."""
        with self._changed:
            self._is_stopped = True
            self._things.clear()
            self._changed.notify_all()

    def get(self) -> T | None:
        """The oldest; None when there are no more."""
        with self._changed:
            while not self._things and not self._has_ended and not self._is_stopped:
                self._changed.wait()
            self.dropped_at_get = self.dropped
            if self._things:
                thing = self._things.popleft()
                self._changed.notify_all()
                return thing
            error, self._error = self._error, None
            if error is not None:
                raise error
            return None


@contextmanager
def _passing_on(before: _Queue[Any], behind: _Queue[Any]) -> Iterator[None]:
    """When a stage ends: ends the queue behind it, with what went wrong, and stops the one before it."""
    try:
        yield
        behind.end()
    except Exception as error:
        behind.end(error)
    finally:
        before.stop()
