"""Parts of files, by start_s and end_s: their frames are those of the whole, with the same numbers and times."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from runtime import Captioner, VideoError, WholeImage
from runtime.options import StreamOptions
from runtime.video import pyav
from runtime.video.sources import open_source
from tests.clips import write_sounding_clip
from tests.conftest import write_clip

PARTS = [(0.0, 1.0), (1.0, 2.0), (2.25, None), (0.05, 0.15), (3.85, 9.0), (1.95, 2.25)]


def write_uneven_clip(path: Path) -> Path:
    """Write a video whose frames come as they like, as those of phones do, with frames that refer to later ones."""
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("libx264", rate=30, options={"bf": "2", "g": "7"})
        stream.width, stream.height, stream.pix_fmt = 160, 120, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        for number in range(60):
            frame = av.VideoFrame.from_ndarray(np.full((120, 160, 3), 4 * number, np.uint8), "rgb24")
            frame.pts, frame.time_base = 33 * number + 117 * (number // 3), Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def frames_of(file: Path, start_s: float = 0.0, end_s: float | None = None) -> list[tuple[int, float, int]]:
    """Return the number, the time and the brightness of each frame."""
    frames = open_source(file, StreamOptions(start_s=start_s, end_s=end_s)).frames()
    return [(one.number, round(one.seconds or 0.0, 4), int(np.asarray(one.image).mean())) for one in frames]


@pytest.mark.parametrize("kind", ["mp4", "b.mp4", "one key.mp4", "uneven.mp4", "mov", "mkv", "ts", "avi"])
def test_a_part_has_the_frames_of_the_whole(tmp_path: Path, kind: str) -> None:
    clip = tmp_path / f"clip.{kind}"
    if kind == "uneven.mp4":
        write_uneven_clip(clip)
    elif kind == "avi":
        write_clip(clip, [Image.new("RGB", (160, 120), (6 * number, 0, 0)) for number in range(40)])
    else:
        options: dict[str, dict[str, Any]] = {"b.mp4": {"bf": "3"}, "one key.mp4": {"g": "1000"}}
        write_sounding_clip(clip, **options.get(kind, {"bf": "0"}))
    whole = frames_of(clip)
    for start_s, end_s in PARTS:
        expected = [one for one in whole if start_s - 5e-4 <= one[1] < (end_s or 99) - 5e-4]
        assert frames_of(clip, start_s, end_s) == expected, (start_s, end_s)


def test_only_what_is_near_is_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded, decode = list[int](), pyav.VideoInput._decode

    def count(*packet: Any) -> Any:
        decoded.append(1)
        return decode(*packet)

    monkeypatch.setattr(pyav.VideoInput, "_decode", count)
    assert len(frames_of(write_sounding_clip(tmp_path / "clip.mp4", bf="0"), 3.05, 3.35)) == 3
    assert len(decoded) <= 20, "not the 30 frames before, but what the decoder works on at once"


def test_a_broadcast_is_counted_from_its_own_start(tmp_path: Path) -> None:
    clip = tmp_path / "clip.ts"
    with av.open(str(clip), "w", options={"output_ts_offset": "50000"}) as container:
        stream: Any = container.add_stream("libx264", rate=10, options={"g": "5", "bf": "0"})
        stream.width, stream.height, stream.pix_fmt = 160, 120, "yuv420p"
        for number in range(40):
            frame = av.VideoFrame.from_ndarray(np.full((120, 160, 3), 6 * number, np.uint8), "rgb24")
            frame.pts, frame.time_base = number, Fraction(1, 10)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    assert [one[:2] for one in frames_of(clip)] == [(number, number / 10) for number in range(40)]
    assert frames_of(clip, 2.0) == frames_of(clip)[20:]


def test_a_file_that_cannot_be_sought_in_is_read_from_its_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip = write_sounding_clip(tmp_path / "clip.mp4")
    monkeypatch.setattr(pyav.VideoInput, "_seek", lambda *_: False)
    assert frames_of(clip, 2.0, 3.0) == frames_of(clip)[20:30]


def test_a_search_that_misses_begins_earlier(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clip, seek = write_sounding_clip(tmp_path / "clip.mp4"), pyav.VideoInput._seek
    monkeypatch.setattr(pyav.VideoInput, "_seek", lambda opened, seconds: seek(opened, seconds and seconds + 1.5))
    assert frames_of(clip, 2.0, 3.0) == frames_of(clip)[20:30]


def test_what_has_no_such_part_is_refused(tmp_path: Path) -> None:
    clip = write_sounding_clip(tmp_path / "clip.mp4")
    with pytest.raises(VideoError, match=f"{clip}: start_s 5: it is only 4 s long"):
        frames_of(clip, 5.0)
    with pytest.raises(VideoError, match=f"{clip}: there is no frame from 3.95 s up to 3.97 s"):
        frames_of(clip, 3.95, 3.97)
    Image.new("RGB", (9, 9)).save(tmp_path / "image.png")
    with pytest.raises(VideoError, match="a folder of images has no times"):
        frames_of(tmp_path, 1.0)
    with pytest.raises(VideoError, match="an iterable: start_s and end_s choose a part of a file"):
        open_source([Image.new("RGB", (9, 9))], StreamOptions(end_s=1.0))


def test_frames_without_times_have_no_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clip = write_sounding_clip(tmp_path / "clip.mp4")
    monkeypatch.setattr(pyav.VideoInput, "_seconds", lambda *_: None)
    with pytest.raises(VideoError, match=f"{clip}: its frames have no times: start_s and end_s cannot be found"):
        frames_of(clip, 1.0)


def test_a_part_is_described(demo: Captioner, tmp_path: Path) -> None:
    clip = write_sounding_clip(tmp_path / "clip.mp4")
    with demo.stream(clip, [WholeImage()], start_s=1, end_s=2, every=5) as stream:
        assert stream.source.frame_count == 10
        assert [(result.frame.number, result.frame.seconds) for result in stream] == [(10, 1.0), (15, 1.5)]
