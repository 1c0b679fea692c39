"""The sound that goes with a video's frames: encoded packets, read beside the frames by a reader of their own."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import chain, islice
from typing import TYPE_CHECKING, Any

from runtime.errors import VideoError
from runtime.video.addresses import VideoAddress, reason_of, start_of

if TYPE_CHECKING:
    import av

_SEEK_BACK_S = 10.0
"""How far before the start reading begins: some containers are searched without an index, and missed."""


@dataclass(frozen=True)
class Sound:
    """The first sound of a video, or a part of it.

    Attributes:
        address: of the video.
        timeout_s: how long a URL may be silent; None for as long as it takes.
        start_s, end_s: the part, in seconds from the start of the video.
    """

    address: VideoAddress
    timeout_s: float | None = None
    start_s: float = 0.0
    end_s: float = math.inf

    @contextmanager
    def open(self) -> Iterator[SoundInput]:
        """Open the video once more, for its sound alone: both advance by themselves, however they lie in the file.

        Raises:
            VideoError: it cannot be opened, or has no sound.
        """
        with self.address.open(self.timeout_s) as container:
            yield SoundInput(self, container)


class SoundInput:
    """Sound that is open.

    Attributes:
        stream: PyAV's, which says how the sound is encoded.
        begins_s: when the first packet begins, from the start of the part; infinity where there is none.
        packets: the encoded packets of the part in order, with times from its start; read as they are asked for.

    Raises:
        VideoError: there is no sound, or none that FFmpeg knows; also by ``packets``, where it cannot be read further.
    """

    def __init__(self, sound: Sound, container: av.container.InputContainer) -> None:
        if not container.streams.audio:
            raise VideoError(f"{sound.address.name}: there is no sound in it")
        self.stream = container.streams.audio[0]
        codec = getattr(self.stream, "codec_context", None)
        if codec is None or codec.sample_rate < 1 or codec.layout.nb_channels < 1:
            raise VideoError(f"{sound.address.name}: FFmpeg cannot tell how its sound is encoded")
        self._sound, self._container = sound, container
        packets = self._read()
        first = list(islice(packets, 1))
        self.begins_s = time_of(first[0]) if first else math.inf
        self.packets = chain(first, packets)

    def _read(self) -> Iterator[av.Packet[Any]]:
        origin_s = start_of(self._container)
        if self._sound.start_s > 0:
            with suppress(Exception):  # a format that cannot be sought in is read from its start
                self._container.seek(round((origin_s + max(0.0, self._sound.start_s - _SEEK_BACK_S)) * 1e6))
        last = -1
        for packet in self._all_packets():
            if packet.pts is None:
                packet.pts = packet.dts
            if packet.pts is None or not packet.time_base:  # the last, which is empty, or a damaged one
                continue
            packet.pts -= round((origin_s + self._sound.start_s) / packet.time_base)
            packet.dts = packet.pts
            if time_of(packet) >= self._sound.end_s - self._sound.start_s:
                return
            if packet.pts > last:  # and a time that goes back is a damaged one
                last = packet.pts
                yield packet

    def _all_packets(self) -> Iterator[av.Packet[Any]]:
        packets = self._container.demux(self.stream)
        while True:
            try:
                packet = next(packets, None)
            except Exception as error:  # whatever PyAV raises at what is damaged or lost
                raise VideoError(f"{self._sound.address.name}: the sound: {reason_of(error)}") from None
            if packet is None:
                return
            yield packet


def time_of(packet: av.Packet[Any]) -> float:
    """Return when a packet begins, in seconds."""
    assert packet.pts is not None
    assert packet.time_base is not None
    return float(packet.pts * packet.time_base)
