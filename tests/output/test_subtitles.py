"""Subtitles, read back by FFmpeg."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path

import av
import pytest
from PIL import Image

from runtime import Caption, Frame, FrameCaptions
from runtime.output.subtitles import SUBRIP, WEBVTT, SubtitleFormat, subtitles
from runtime.system.outputs import Output

IMAGE = Image.new("RGB", (8, 8))
STYLES = [("srt", SUBRIP), ("vtt", WEBVTT)]


def described(number: int, texts: Iterable[str], seconds: float | None = None) -> FrameCaptions:
    captions = [Caption(text, 0.5, ()) for text in texts]
    return FrameCaptions(Frame(number, seconds, IMAGE), captions, 0, 0.0)


def write(path: Path, style: SubtitleFormat, frames: Sequence[FrameCaptions], start_s: float = 0.0) -> str:
    with subtitles(Output(path), print, style, Fraction(4), start_s) as recorder:
        for frame in frames:
            recorder.add(frame)
    return path.read_text(encoding="utf-8")


def cues(path: Path) -> list[tuple[float, float, str]]:
    """Return the start, the end and the text of each cue, as FFmpeg reads it."""
    found = []
    with av.open(str(path)) as container:
        for packet in container.demux(subtitles=0):
            for subtitle in packet.decode():
                text = bytes(subtitle.ass).decode().split(",", 8)[-1].replace("\\N", "\n")
                assert packet.pts is not None
                assert packet.time_base is not None
                start = float(packet.pts * packet.time_base)
                found.append((start, start + float((packet.duration or 0) * packet.time_base), text))
    return found


def plain(text: str) -> str:
    """Return a text without what FFmpeg, or we, put into it so that it is no markup."""
    return text.replace("\u2060", "").replace("{{}", "{").replace("\\{", "{")


@pytest.mark.parametrize(("suffix", "style"), STYLES)
def test_a_cue_lasts_as_long_as_the_captions_stay_the_same(tmp_path: Path, suffix: str, style: SubtitleFormat) -> None:
    path = tmp_path / f"out.{suffix}"
    texts = [["a dog"], ["a dog"], ["a dog", "a ball"], [], [""], ["a cat"], ["a cat"]]
    write(path, style, [described(number, one, number / 4) for number, one in enumerate(texts)])
    assert cues(path) == [(0, 0.5, "a dog"), (0.5, 0.75, "a dog\na ball"), (1.25, 1.75, "a cat")]


def test_the_files_are_as_their_formats_say(tmp_path: Path) -> None:
    frames = [described(0, ["a dog", "a ball"], 3661.5), described(1, ["a cat"], 3662)]
    assert write(tmp_path / "out.srt", SUBRIP, frames) == (
        "1\n01:01:01,500 --> 01:01:02,000\na dog\na ball\n\n2\n01:01:02,000 --> 01:01:02,250\na cat\n\n"
    )
    assert write(tmp_path / "out.vtt", WEBVTT, frames, start_s=3600) == (
        "WEBVTT\n\n00:01:01.500 --> 00:01:02.000\na dog\na ball\n\n00:01:02.000 --> 00:01:02.250\na cat\n\n"
    )


@pytest.mark.parametrize(("suffix", "style"), STYLES)
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a <b>bold</b> & {\\an8}dog &lt;", "a <b>bold</b> & {\\an8}dog &lt;"),
        ("one\n\ntwo\r\x00\x1b[2J\u2028three\t", "one two [2J three"),
        ("café 犬 \U0001f415", "café 犬 \U0001f415"),
        ("half \ud800 a sign", "half ? a sign"),
        ("a \u202ename\u2066 turned", "a name turned"),
        ("=cmd '\"' \x00 \x9b", "=cmd '\"'"),
    ],
)
def test_no_text_is_taken_for_anything_else(
    tmp_path: Path, suffix: str, style: SubtitleFormat, text: str, expected: str
) -> None:
    path = tmp_path / f"out.{suffix}"
    write(path, style, [described(0, [text, "a cat"], 0.0), described(1, ["a dog"], 1.0)])
    found = [
        (start, end, read.replace("\u2060", "").replace("{{}", "{").replace("\\{", "{"))
        for start, end, read in cues(path)
    ]
    assert found == [(0, 1, f"{expected}\na cat"), (1, 1.25, "a dog")]


@pytest.mark.parametrize(("suffix", "style"), STYLES)
@pytest.mark.parametrize("text", ["x" * 100_000, "-->\n" * 20_000], ids=["a-word", "arrows"])
def test_a_text_that_is_too_long_for_players_spoils_no_other(
    tmp_path: Path, suffix: str, style: SubtitleFormat, text: str
) -> None:
    path = tmp_path / f"out.{suffix}"
    write(path, style, [described(0, [text], 0.0), described(1, ["a dog"], 1.0)])
    (start, end, _), last = cues(path)
    assert (start, end, last) == (0, 1, (1, 1.25, "a dog"))


@pytest.mark.parametrize(("suffix", "style"), STYLES)
def test_a_text_with_an_arrow_begins_no_cue(tmp_path: Path, suffix: str, style: SubtitleFormat) -> None:
    path = tmp_path / f"out.{suffix}"
    text = write(path, style, [described(0, ["2", "00:00:05,000 --> 00:00:06,000", "a --->", "-----> b"], 0.0)])
    assert text.count("-->") == 1
    assert len(cues(path)) == 1


@pytest.mark.parametrize(("suffix", "style"), STYLES)
def test_cues_are_in_the_file_as_soon_as_they_end(tmp_path: Path, suffix: str, style: SubtitleFormat) -> None:
    path = tmp_path / f"out.{suffix}"
    with subtitles(Output(path), print, style, Fraction(10)) as recorder:
        for number in range(6):
            recorder.add(described(number, [f"caption {number // 2}"]))
        (part,) = tmp_path.iterdir()
        assert cues(part) == [(0, 0.2, "caption 0"), (0.2, 0.4, "caption 1")]
    assert [text for *_, text in cues(path)] == ["caption 0", "caption 1", "caption 2"]


@pytest.mark.parametrize(("suffix", "style"), STYLES)
def test_times_that_go_back_or_stand_still_make_cues_in_order(
    tmp_path: Path, suffix: str, style: SubtitleFormat
) -> None:
    path = tmp_path / f"out.{suffix}"
    write(path, style, [described(number, [str(number)], time) for number, time in enumerate([1.0, 1.0, 0.2, 3.0])])
    found = cues(path)
    assert [text for *_, text in found] == ["0", "1", "2", "3"]
    assert [start for start, *_ in found] == sorted(start for start, *_ in found)
    assert all(end > start for start, end, _ in found)


@pytest.mark.parametrize(("suffix", "style"), STYLES)
def test_a_stream_without_captions_replaces_an_older_file_all_the_same(
    tmp_path: Path, suffix: str, style: SubtitleFormat
) -> None:
    path = tmp_path / f"out.{suffix}"
    path.write_text("old")
    assert write(path, style, [described(0, [], 0.0)]) in ("\n", "WEBVTT\n\n")
    with av.open(str(path), format={"vtt": "webvtt"}.get(suffix, suffix)) as container:
        assert next(iter(container.demux(subtitles=0))).pts is None
