"""The sound of an annotated video: that of its source, as it is where the container takes it, or encoded again."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Mapping
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from runtime.errors import VideoError
from runtime.video.sound import SoundInput, time_of

if TYPE_CHECKING:
    import av

_COPIED: Mapping[str, frozenset[str]] = {
    "mp4": frozenset({"aac", "alac", "flac", "mp3", "opus"}),
    "mov": frozenset({"aac", "alac", "mp3", "pcm_s16be", "pcm_s16le", "pcm_s24le"}),
    "matroska": frozenset(
        {"aac", "ac3", "alac", "dts", "eac3", "flac", "mp2", "mp3", "opus", "pcm_s16le", "pcm_s24le", "vorbis"}
    ),
    "avi": frozenset({"ac3", "mp2", "mp3", "pcm_s16le", "pcm_u8"}),
}
"""What each container takes as it is, and players know in it."""
_ENCODERS: Mapping[str, tuple[str, ...]] = {"avi": ("libmp3lame", "ac3")}
"""For what is not copied, the first that this FFmpeg has."""
_ENCODERS_ELSEWHERE = ("aac",)
_RATE = 48_000
"""Samples in a second, for an encoder that does not take the source's."""

_LEAST_GAP_S = 0.1
"""What is missing between two frames is silence from here on; less is a rounded time."""


class SoundTrack:
    """The packets of a sound, made fit for a container, in the order of their times."""

    def __init__(self, sound: SoundInput) -> None:
        self._sound = sound
        self._stream: Any = None
        self._encoder: _Encoder | None = None
        self._ready = deque[Any]()
        self._is_read = sound.begins_s == math.inf

    @property
    def is_at_end(self) -> bool:
        """Whether there are no more packets."""
        return self._is_read and not self._ready

    def add_to(self, container: av.container.OutputContainer, container_format: str) -> None:
        """Add the track to a container that nothing is written to yet.

        Raises:
            VideoError: there is no way to bring it into the container.
        """
        if container_format == "avi" and self._sound.begins_s > _LEAST_GAP_S:
            raise VideoError("it begins after the frames, which AVI cannot express; .mp4 and .mkv can")
        codec = self._sound.stream.codec_context
        name = codec.codec.canonical_name
        lacks_head = name == "aac" and not codec.extradata  # as broadcasts have it; containers want it
        if name in _COPIED[container_format] and not lacks_head:
            self._stream = container.add_stream_from_template(self._sound.stream)
        else:
            self._encoder = _Encoder(container, codec, _ENCODERS.get(container_format, _ENCODERS_ELSEWHERE))

    def packets_until(self, seconds: float) -> Iterator[av.Packet[Any]]:
        """Yield the packets that begin up to a time, before the frames that come after: containers want that order.

        Raises:
            VideoError: the sound cannot be read further.
        """
        while True:
            while not self._ready and not self._is_read:
                self._read()
            if not self._ready or time_of(self._ready[0]) > seconds:
                return
            yield self._ready.popleft()

    def _read(self) -> None:
        packet = next(self._sound.packets, None)
        self._is_read = packet is None
        if self._encoder is not None:
            self._ready.extend(self._encoder.end() if packet is None else self._encoder.encode(packet))
        elif packet is not None:
            packet.stream = self._stream
            self._ready.append(packet)


class _Encoder:
    """Decodes packets and encodes them as another codec."""

    def __init__(self, container: av.container.OutputContainer, source: Any, names: tuple[str, ...]) -> None:
        import av

        name = next((one for one in names if one in av.codecs_available), None)
        if name is None:
            raise VideoError(
                f"{source.name} sound cannot be copied, and this FFmpeg has no encoder {' or '.join(names)}"
            )
        rates = av.Codec(name, "w").audio_rates
        rate = source.sample_rate if rates is None or source.sample_rate in rates else _RATE
        layout = "mono" if source.layout.nb_channels == 1 else "stereo"
        stream: Any = container.add_stream(name, rate=rate, layout=layout)
        self._codec = stream.codec_context
        self._stream = stream
        self._resampler: Any = None
        self._samples: int | None = None

    def encode(self, packet: av.Packet[Any]) -> Iterator[av.Packet[Any]]:
        """Yield what an encoded packet becomes; one that cannot be decoded becomes nothing."""
        try:
            frames = [resampled for decoded in packet.decode() for resampled in self._resample(decoded)]
        except Exception:  # whatever a decoder raises at damaged data, or a resampler at frames of another kind
            return
        yield from self._encode(frames)

    def end(self) -> Iterator[av.Packet[Any]]:
        """Yield what the encoder still holds."""
        if self._resampler is not None:
            yield from self._encode(self._resample(None))
            yield from self._encode([None])

    def _resample(self, frame: Any) -> list[Any]:
        import av

        if self._resampler is None:
            codec = self._codec
            codec.open(strict=False)
            self._resampler = av.AudioResampler(codec.format, codec.layout, codec.sample_rate, codec.frame_size or None)
        return list(self._resampler.resample(frame))

    def _encode(self, frames: list[Any]) -> Iterator[av.Packet[Any]]:
        for frame in frames:
            if frame is not None:
                self._set_time(frame)
            for packet in self._stream.encode(frame):
                if packet.pts is not None and packet.pts >= 0:  # before 0 there is what primes the decoder
                    yield packet

    def _set_time(self, frame: Any) -> None:
        """Let a frame follow the one before without a gap, but for a real one: containers round their times."""
        rate = self._codec.sample_rate
        at = None if frame.pts is None else round(frame.pts * frame.time_base * rate)
        if at is not None and (self._samples is None or at > self._samples + _LEAST_GAP_S * rate):
            self._samples = at
        frame.pts, frame.time_base = self._samples or 0, Fraction(1, rate)
        self._samples = frame.pts + frame.samples
