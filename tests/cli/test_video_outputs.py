"""`patchcaption video`: parts of files, sound, subtitles, tables, and several sources at once."""

from __future__ import annotations

import csv
import json
from collections import Counter
from pathlib import Path
from typing import Any

import av
import pytest
from PIL import Image

from runtime.cli.main import main
from runtime.cli.video_arguments import seconds
from tests.cli.test_video_command import Run, clip, frames_of, run, work_dir
from tests.clips import marks, write_sounding_clip
from tests.conftest import write_clip
from tests.video.test_stream import FRAMES

__all__ = ["clip", "run", "work_dir"]  # fixtures


@pytest.fixture(scope="module")
def sounding(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sounding_clip(tmp_path_factory.mktemp("clips") / "sounding.mp4")


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_part_is_saved_with_its_sound_subtitles_and_table(run: Run, sounding: Path, work_dir: Path) -> None:
    outputs = ["--save", "o.mp4", "--jsonl", "o.jsonl", "--csv", "o.csv", "--srt", "o.srt", "--vtt", "o.vtt"]
    assert run(sounding, "--whole", "--start", "0:01.5", "--end", "3.5", *outputs) == (0, "", "")
    lines = [json.loads(line) for line in Path("o.jsonl").read_text().splitlines()]
    assert [line["frame"] for line in lines] == list(range(15, 35))
    assert lines[0]["seconds"] == 1.5
    assert "source" not in lines[0]
    rows = rows_of(Path("o.csv"))
    assert [(row["frame"], row["seconds"]) for row in rows] == [
        (str(one["frame"]), str(one["seconds"])) for one in lines
    ]
    assert {row["source"] for row in rows} == {str(sounding)}
    assert [row["caption"] for row in rows] == [one["captions"][0]["text"] for one in lines]
    flashes, tones = marks(Path("o.mp4"))
    assert flashes == pytest.approx([0.5, 1.5], abs=0.01)
    assert tones == pytest.approx(flashes, abs=0.04)
    assert Path("o.srt").read_text().startswith("1\n00:00:00,000 --> 00:00:0"), "as the video that is saved"
    assert "00:00:02.000\n" in Path("o.vtt").read_text()
    assert len(list(work_dir.iterdir())) == 5


def test_subtitles_alone_go_with_the_source(run: Run, sounding: Path, work_dir: Path) -> None:
    assert run(sounding, "--whole", "--start", "1.5", "--srt", "o.srt") == (0, "", "")
    assert (work_dir / "o.srt").read_text().startswith("1\n00:00:01,500 --> ")
    assert " --> 00:00:04,000\n" in (work_dir / "o.srt").read_text()


def test_each_nth_frame_has_the_sound_too(run: Run, sounding: Path, work_dir: Path) -> None:
    assert run(sounding, "--whole", "--every", "10", "--save", "o.mp4", "--jsonl", "/dev/null") == (0, "", "")
    flashes, tones = marks(work_dir / "o.mp4")
    assert flashes == pytest.approx([1, 2, 3], abs=0.01)
    assert tones == pytest.approx([1, 2, 3], abs=0.04)


def test_tables_and_subtitles_may_be_stdout(run: Run, clip: Path) -> None:
    for flag, beginning in (("--csv", "source,frame,"), ("--srt", "1\n00:"), ("--vtt", "WEBVTT\n\n00:")):
        code, out, err = run(clip, "--whole", "--every", "6", flag, "-")
        assert (code, err) == (0, "")
        assert out.startswith(beginning)


@pytest.mark.slow
def test_several_sources_share_a_captioner(run: Run, clip: Path, sounding: Path, work_dir: Path) -> None:
    assert run(clip, sounding, "--whole", "--every", "2", "--jsonl", "o.jsonl", "--csv", "o.csv") == (0, "", "")
    lines = [json.loads(line) for line in (work_dir / "o.jsonl").read_text().splitlines()]
    assert Counter(line["source"] for line in lines) == {str(clip): FRAMES // 2, str(sounding): 20}
    for source in (clip, sounding):
        numbers = [line["frame"] for line in lines if line["source"] == str(source)]
        assert numbers == list(range(0, 2 * len(numbers), 2))
    assert [(row["source"], int(row["frame"])) for row in rows_of(work_dir / "o.csv")] == [
        (line["source"], line["frame"]) for line in lines
    ]
    code, out, _ = run(clip, sounding, "--whole", "--every", "8")
    assert code == 0
    assert {line.split("  ")[0] for line in out.splitlines()} == {str(clip), str(sounding)}


def test_one_source_that_fails_does_not_end_the_others(run: Run, clip: Path, work_dir: Path) -> None:
    broken = work_dir / "broken.mp4"
    content = write_clip(work_dir / "whole.mp4", [Image.new("RGB", (160, 120))] * 3).read_bytes()
    broken.write_bytes(content.replace(content[content.index(b"mdat") + 4 : content.index(b"moov") - 4], b"", 1))
    code, _, err = run(clip, "none.mp4", broken, "--whole", "--jsonl", "o.jsonl")
    assert code == 1
    assert "patchcaption: note: none.mp4: no such file or folder\n" in err
    assert f"patchcaption: note: {broken}: " in err
    assert err.count("\n") == 2
    lines = [json.loads(line) for line in (work_dir / "o.jsonl").read_text().splitlines()]
    assert Counter(line["source"] for line in lines) == {str(clip): FRAMES}
    code, _, err = run("none.mp4", "nothing.mp4", "--whole")
    assert (code, err.count("\n")) == (1, 2)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["CLIP", "CLIP", "--save", "o.mp4"], 2, "--save: expected one source, got 2: only --jsonl and --csv hold"),
        (["CLIP", "CLIP", "--srt", "o.srt"], 2, "--srt: expected one source, got 2"),
        (["CLIP", "CLIP", "--show"], 2, "--show: expected one source, got 2"),
        (["CLIP", "--csv", "o", "--jsonl", "./o"], 2, "--csv o: --jsonl writes there too"),
        (["CLIP", "--srt", "o", "--vtt", "o"], 2, "--vtt o: --srt writes there too"),
        (["CLIP", "CLIP", "--csv", "CLIP"], 2, "is read, and would be overwritten"),
        (["CLIP", "--start", "2", "--end", "1:00"], 1, "start_s 2: it is only 1.2 s long"),
        (["CLIP", "--start", "1", "--end", "1"], 2, "end_s: expected more than start_s, 1, got 1"),
        (["CLIP", "--start", "-1"], 2, "start_s: expected a number from 0 on, got -1"),
        (["CLIP", "--start", "1:60"], 2, "expected seconds or HH:MM:SS, got '1:60': there are 60 to each"),
        (["CLIP", "--end", "soon"], 2, "expected seconds or HH:MM:SS, got 'soon'"),
        ([".", "--start", "1"], 1, "a folder of images has no times"),
    ],
)
def test_mistakes_are_told_before_the_work(
    run: Run, clip: Path, work_dir: Path, arguments: list[str], code: int, message: str
) -> None:
    got, out, err = run(*[str(clip) if one == "CLIP" else one for one in arguments])
    assert (got, out) == (code, "")
    assert message in err
    assert list(work_dir.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [("90", 90), ("1.5", 1.5), ("1:30", 90), ("90:00", 5400), ("01:02:03.250", 3723.25), ("0:0:1.", 1)],
)
def test_times_are_read_in_seconds_or_by_the_clock(text: str, expected: float) -> None:
    assert seconds(text) == expected


def test_a_camera_s_sound_is_not_left_out_without_a_word(
    demo_bundle: Path,
    sounding: Path,
    work_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("runtime.video.sources.FiniteVideo.sound", None, raising=False)
    monkeypatch.setattr("runtime.video.sources.Sound", lambda *_: None)
    flags = ["--bundle", str(demo_bundle), "--end", "0.3", "--save", "o.mp4", "--jsonl", "/dev/null"]
    assert main(["video", str(sounding), *flags]) == 0
    told = "patchcaption: note: o.mp4: without sound: that of a camera or a live URL is not kept\n"
    assert capsys.readouterr().err == told
    assert len(frames_of(work_dir / "o.mp4")) == 3


@pytest.mark.usefixtures("work_dir")
def test_whatever_is_opened_is_opened_with_its_lists(
    run: Run, clip: Path, sounding: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    av_open, lists = av.open, list[Any]()

    def opening(file: Any, *arguments: Any, **options: Any) -> Any:
        if not arguments:  # else it is written
            lists.append((options["options"].get("format_whitelist"), options["options"].get("protocol_whitelist")))
        return av_open(file, *arguments, **options)

    monkeypatch.setattr(av, "open", opening)
    for source, times in ((clip, 1), (sounding, 2)):  # the sound has a reader of its own
        assert run(source, "--whole", "--every", "10", "--save", "o.mp4", "--jsonl", "/dev/null") == (0, "", "")
        assert len(lists) == times
        assert all("mov" in formats and "concat" not in formats and "hls" not in formats for formats, _ in lists)
        assert {protocols for _, protocols in lists} == {"file"}
        lists.clear()
