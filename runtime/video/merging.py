"""Several described streams as one, in the order in which their frames are done."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Lock, Thread
from typing import TypeAlias

from runtime.system.closeable import Closeable
from runtime.system.threads import join_all
from runtime.video.queue import BoundedQueue
from runtime.video.stream import CaptionStream, FrameCaptions

_SECONDS_TO_LEAVE = 1.0

Arrival: TypeAlias = "tuple[int, FrameCaptions | BaseException]"
"""The number of a stream, and its next frame or the error that it has ended with."""


class MergedStreams(Closeable):
    """Follows streams, each in a thread. Closing it closes them.

    An error of one stream arrives in its place among the frames; the others go on.
    """

    def __init__(self, streams: Sequence[CaptionStream]) -> None:
        self._streams = streams
        self._arrivals: BoundedQueue[Arrival] = BoundedQueue(max(1, len(streams)), drops=False)
        self._going, self._lock = len(streams), Lock()
        self._threads = [
            Thread(target=self._follow, args=(number, stream), name="patchcaption following", daemon=True)
            for number, stream in enumerate(streams)
        ]
        if not streams:
            self._arrivals.end()
        for thread in self._threads:
            thread.start()

    def wait(self, timeout_s: float) -> bool:
        """Wait until `get` has something to return, at most for a time; return whether it has."""
        return self._arrivals.wait(timeout_s)

    def get(self) -> Arrival | None:
        """Wait for the next frame or error of any stream; None when all have ended."""
        return self._arrivals.get()

    def close(self) -> None:
        """Close the streams; frames that are not taken are discarded."""
        self._arrivals.stop()
        if self._streams:
            with ThreadPoolExecutor(len(self._streams)) as closers:  # each may wait for its source
                list(closers.map(CaptionStream.close, self._streams))
        join_all(self._threads, _SECONDS_TO_LEAVE)

    def _follow(self, number: int, stream: CaptionStream) -> None:
        try:
            for described in stream:
                if not self._arrivals.put((number, described)):
                    return
        except BaseException as error:
            self._arrivals.put((number, error))
        finally:
            with self._lock:
                self._going -= 1
                if not self._going:
                    self._arrivals.end()
