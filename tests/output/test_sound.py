"""The sound of annotated videos: in step with the frames, in whatever container, also of a part, also when killed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from runtime import FrameCaptions, VideoError
from runtime.options import StreamOptions
from runtime.output.video_file import annotated_video
from runtime.system.outputs import Output
from runtime.video.sound import SoundInput
from runtime.video.sources import open_source
from tests.clips import SECONDS, marks, write_sounding_clip
from tests.video.test_sources import http_server

IN_STEP_S = 0.04
"""A frame of sound begins and ends up to so much before or after a cut."""


def save(source_file: Path | str, target: Path, notes: list[str], **options: Any) -> None:
    source = open_source(source_file, StreamOptions(**options))
    with annotated_video(Output(target), notes.append, source.rate, source.sound, options.get("start_s", 0.0)) as video:
        for frame in source.frames():
            video.add(FrameCaptions(frame, [], 0, 0.0))
        video.add_rest_of_sound()


@pytest.mark.parametrize(
    ("source", "codec", "target", "expected"),
    [
        ("mp4", "aac", "mp4", "aac"),
        ("mp4", "aac", "avi", "mp3"),
        ("mp4", "ac3", "mp4", "aac"),
        ("ts", "aac", "mov", "aac"),
        ("ts", "aac", "mkv", "aac"),
        ("mkv", "libopus", "mkv", "opus"),
        ("mkv", "libopus", "mov", "aac"),
        ("mkv", "libmp3lame", "mp4", "mp3"),
        ("mkv", "pcm_u8", "mp4", "aac"),
        ("mov", "pcm_s16le", "avi", "pcm_s16le"),
    ],
)
def test_sound_stays_in_step(tmp_path: Path, source: str, codec: str, target: str, expected: str) -> None:
    clip, notes = write_sounding_clip(tmp_path / f"clip.{source}", codec), list[str]()
    for start_s, end_s in ((0.0, None), (1.5, 3.5)):
        out = tmp_path / f"out.{target}"
        save(clip, out, notes, start_s=start_s, end_s=end_s)
        flashes, tones = marks(out)
        assert len(flashes) == (3 if end_s is None else 2)
        assert tones == pytest.approx(flashes, abs=IN_STEP_S)
        assert flashes[0] == pytest.approx(1.0 if end_s is None else 0.5, abs=IN_STEP_S)
    with av.open(str(out)) as container:
        assert container.streams.audio[0].codec_context.codec.canonical_name == expected
        times = [frame.time or 0.0 for frame in container.decode(video=0)]
    assert np.diff(times[1:]) == pytest.approx([0.1] * (len(times) - 2), abs=2e-3)
    assert notes == []


def test_sound_goes_on_to_its_end_and_each_nth_frame_has_all_of_it(tmp_path: Path) -> None:
    clip = write_sounding_clip(tmp_path / "clip.mp4")
    source, out = open_source(clip), tmp_path / "out.mp4"
    assert source.rate is not None
    with annotated_video(Output(out), print, source.rate / 10, source.sound) as video:
        for frame in islice(source.frames(), 0, None, 10):
            video.add(FrameCaptions(frame, [], 0, 0.0))
        video.add_rest_of_sound()
    flashes, tones = marks(out)
    assert flashes == pytest.approx([1, 2, 3], abs=IN_STEP_S)
    assert tones == pytest.approx([1, 2, 3], abs=IN_STEP_S)
    with av.open(str(out)) as container:
        last = max(packet.pts * packet.time_base for packet in container.demux(audio=0) if packet.pts is not None)
    assert float(last) == pytest.approx(SECONDS, abs=0.1)


@pytest.mark.parametrize(("codec", "suffix"), [("aac", "mp4"), ("pcm_u8", "mov"), ("aac", "mkv")])
def test_uneven_frames_keep_their_times_beside_sound(tmp_path: Path, suffix: str, codec: str) -> None:
    source = open_source(write_sounding_clip(tmp_path / "clip.mkv", codec, sample_rate=8000))
    times = [0, 0.03, 0.2, 0.21, 0.5, 0.53, 0.6, 1.0, 1.4, 1.43, 2.0, 2.5, 3.0, 3.01]
    out = tmp_path / f"out.{suffix}"
    with annotated_video(Output(out), print, source.rate, source.sound) as video:
        for frame, time in zip(source.frames(), times, strict=False):
            video.add(FrameCaptions(replace(frame, seconds=time), [], 0, 0.0))
    with av.open(str(out)) as container:
        assert [frame.time for frame in container.decode(video=0)] == pytest.approx(times, abs=2e-3)
    assert marks(out)[1] == pytest.approx([1, 2, 3], abs=IN_STEP_S)


def test_the_sound_of_a_url_is_kept_too(tmp_path: Path) -> None:
    notes = list[str]()
    write_sounding_clip(tmp_path / "clip.mp4")
    with http_server(tmp_path) as address:
        save(f"{address}/clip.mp4", tmp_path / "out.mp4", notes, start_s=1.5)
    flashes, tones = marks(tmp_path / "out.mp4")
    assert flashes == pytest.approx([0.5, 1.5], abs=IN_STEP_S)
    assert tones == pytest.approx(flashes, abs=IN_STEP_S)
    assert notes == []


@pytest.mark.parametrize("suffix", ["mp4", "mov", "mkv", "avi"])
def test_a_video_with_sound_can_be_read_while_it_is_written(tmp_path: Path, suffix: str) -> None:
    source = open_source(write_sounding_clip(tmp_path / "clip.mp4"))
    with annotated_video(Output(tmp_path / f"out.{suffix}"), print, source.rate, source.sound) as video:
        for frame in islice(source.frames(), 25):
            video.add(FrameCaptions(frame, [], 0, 0.0))
        (part,) = tmp_path.glob("out.part-*")
        flashes, tones = marks(part)
    assert flashes == pytest.approx([1, 2], abs=IN_STEP_S)
    assert tones == pytest.approx([1, 2], abs=IN_STEP_S)
    assert marks(tmp_path / f"out.{suffix}")[1] == pytest.approx([1, 2], abs=IN_STEP_S), "as far as its frames"


@pytest.mark.parametrize(("source", "suffix"), [("ts", "mp4"), ("mp4", "mov"), ("mp4", "mkv"), ("mp4", "avi")])
def test_frames_do_not_wait_for_sound_that_begins_late(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, source: str
) -> None:
    monkeypatch.setattr("runtime.video.sound.SoundInput._all_packets", late(SoundInput._all_packets))
    opened, notes = open_source(write_sounding_clip(tmp_path / f"clip.{source}")), list[str]()
    with annotated_video(Output(tmp_path / f"out.{suffix}"), notes.append, opened.rate, opened.sound) as video:
        for number, frame in enumerate(opened.frames()):
            video.add(FrameCaptions(frame, [], 0, 0.0))
            if number == 15:
                (part,) = tmp_path.glob("out.part-*")
                with av.open(str(part)) as container:
                    assert len(list(container.decode(video=0))) >= 14
        video.add_rest_of_sound()
    if suffix == "avi":
        assert notes == [
            f"{tmp_path}/out.avi: without sound: it begins after the frames, which AVI cannot express; "
            ".mp4 and .mkv can"
        ]
        return
    flashes, tones = marks(tmp_path / f"out.{suffix}")
    assert flashes == pytest.approx([1, 2, 3], abs=IN_STEP_S)
    assert tones == pytest.approx([3], abs=IN_STEP_S)


def late(packets_of: Callable[[SoundInput], Iterator[Any]]) -> Callable[[SoundInput], Iterator[Any]]:
    """Let sound begin after two and a half seconds."""

    def packets(sound: SoundInput) -> Iterator[Any]:
        return (one for one in packets_of(sound) if one.pts is not None and one.pts * one.time_base > 2.5)

    return packets


def test_sound_that_is_lost_on_the_way_is_told_of_and_the_frames_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    all_packets = SoundInput._all_packets

    def losing(sound: SoundInput) -> Iterator[Any]:
        for packet in all_packets(sound):
            if packet.pts is not None and packet.pts * packet.time_base > 2.5:
                raise VideoError("clip.mp4: the sound: Input/output error")
            yield packet

    monkeypatch.setattr(SoundInput, "_all_packets", losing)
    notes, out = list[str](), tmp_path / "out.mp4"
    save(write_sounding_clip(tmp_path / "clip.mp4"), out, notes)
    assert notes == [f"{out}: without the rest of the sound: clip.mp4: the sound: Input/output error"]
    flashes, tones = marks(out)
    assert len(flashes) == 3
    assert len(tones) == 2


def test_sound_without_a_decoder_is_left_out_with_a_word(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runtime.output.sound_track._COPIED", {"mp4": frozenset()})
    monkeypatch.setattr("runtime.output.sound_track._ENCODERS_ELSEWHERE", ("none",))
    notes, out = list[str](), tmp_path / "out.mp4"
    save(write_sounding_clip(tmp_path / "clip.mp4"), out, notes)
    assert notes == [f"{out}: without sound: aac sound cannot be copied, and this FFmpeg has no encoder none"]
    with av.open(str(out)) as container:
        assert not container.streams.audio
        assert len(list(container.decode(video=0))) == 10 * SECONDS
