"""Videos with sound in step: at each whole second but the first, a bright frame and a tone of a tenth of a second."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

RATE, SECONDS, WH = 10, 4, (160, 120)
_SAMPLE_RATE = 48_000
_TONE_HZ, _LOUD = 1000, 0.3


def write_sounding_clip(
    path: Path,
    audio_codec: str = "aac",
    frames: int = RATE * SECONDS,
    sample_rate: int = _SAMPLE_RATE,
    **options: str,
) -> Path:
    """Write a video of 10 frames a second with sound; return its path.

    Args:
        options: of the encoder of H.264.
    """
    with av.open(str(path), "w") as container:
        video: Any = container.add_stream("libx264", rate=RATE, options={"g": "10", **options})
        video.width, video.height, video.pix_fmt = *WH, "yuv420p"
        audio: Any = container.add_stream(audio_codec, rate=sample_rate, layout="mono")
        audio.codec_context.open(strict=False)
        resampler = av.AudioResampler(audio.format, "mono", sample_rate, audio.codec_context.frame_size or None)
        for number in range(frames):
            is_marked = number > 0 and number % RATE == 0
            frame = av.VideoFrame.from_ndarray(np.full((WH[1], WH[0], 3), 255 * is_marked, np.uint8), "rgb24")
            frame.pts, frame.time_base = number, Fraction(1, RATE)
            container.mux(video.encode(frame))
            for sound in resampler.resample(_tone(number, is_marked)):
                container.mux(audio.encode(sound))
        for sound in resampler.resample(None):
            container.mux(audio.encode(sound))
        for stream in (audio, video):
            container.mux(stream.encode())
    return path


def marks(path: Path) -> tuple[list[float], list[float]]:
    """Return when the frames of a video are bright, and when its tones begin, in seconds from its start."""
    with av.open(str(path)) as container:
        start = (container.start_time or 0) / 1e6
        flashes = [
            (frame.time or 0.0) - start
            for frame in container.decode(video=0)
            if frame.to_ndarray(format="gray").mean() > 200
        ]
    tones: list[float] = []
    with av.open(str(path)) as container:
        to_floats, was_loud = av.AudioResampler("flt", "mono", 48_000), False
        for encoded in container.decode(audio=0):
            for sound in to_floats.resample(encoded):
                levels = np.abs(sound.to_ndarray().reshape(-1))
                for index in range(0, len(levels) - 47, 48):
                    is_loud = bool(levels[index : index + 48].max() > _LOUD)
                    if is_loud and not was_loud:
                        tones.append((sound.time or 0.0) - start + index / 48_000)
                    was_loud = is_loud
    return flashes, tones


def _tone(number: int, is_on: bool) -> av.AudioFrame:
    samples = _SAMPLE_RATE // RATE
    wave = 0.8 * is_on * np.sin(2 * np.pi * _TONE_HZ / _SAMPLE_RATE * np.arange(samples))
    frame = av.AudioFrame.from_ndarray(wave.astype(np.float32)[None], "flt", "mono")
    frame.sample_rate, frame.pts, frame.time_base = _SAMPLE_RATE, number * samples, Fraction(1, _SAMPLE_RATE)
    return frame
