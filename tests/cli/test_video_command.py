"""`patchcaption video`: what it prints and writes, and what is left when it breaks off."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import BinaryIO, TypeAlias

import av
import pytest

from runtime import Captioner, Frame, FrameCaptions, PatchcaptionError, VideoError
from runtime.cli.main import main
from runtime.output.json_lines import json_lines
from runtime.output.video_file import annotated_video
from runtime.system.outputs import Output
from runtime.video.stream import CaptionStream
from tests.conftest import write_clip
from tests.video.test_stream import FRAMES, WH, frame_image

Run = Callable[..., tuple[int, str, str]]
CaptureBytes: TypeAlias = pytest.CaptureFixture[bytes]


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    images = [frame_image(number // 4) for number in range(FRAMES)]  # each seen in four frames
    return write_clip(tmp_path_factory.mktemp("clips") / "clip.mp4", images)


@pytest.fixture
def run(demo_bundle: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    def call(*arguments: object) -> tuple[int, str, str]:
        try:
            code = main(["video", *map(str, arguments), "--bundle", str(demo_bundle)])
        except SystemExit as stop:
            code = int(stop.code or 0)
        out, err = capsys.readouterr()
        return code, out, err

    return call


@pytest.fixture
def work_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def frames_of(path: Path) -> list[av.VideoFrame]:
    with av.open(str(path)) as container:
        return list(container.decode(video=0))


def test_every_frame_is_drawn_and_written_down(run: Run, clip: Path, tmp_path: Path) -> None:
    drawn, lines = tmp_path / "drawn.mp4", tmp_path / "lines.jsonl"
    code, out, err = run(clip, "--box", "10,10,90,80", "--whole", "--save", drawn, "--jsonl", lines)
    assert (code, out, err) == (0, "", "")
    told = [json.loads(line) for line in lines.read_text().splitlines()]
    assert [one["frame"] for one in told] == list(range(FRAMES))
    assert [one["seconds"] for one in told] == pytest.approx([number / 10 for number in range(FRAMES)])
    assert [one["captions"][1]["region"]["kind"] for one in told] == ["whole_image"] * FRAMES
    assert [one["captions"][0]["reused"] for one in told[:3]] == [False, True, True]
    pictures_drawn = frames_of(drawn)
    assert [frame.time for frame in pictures_drawn] == pytest.approx(
        [number / 10 for number in range(FRAMES)], abs=1e-3
    )
    assert (pictures_drawn[0].width, pictures_drawn[0].height) == WH
    assert not list(tmp_path.glob(".*"))


def test_regions_may_come_from_a_file(run: Run, clip: Path, tmp_path: Path) -> None:
    regions, lines = tmp_path / "regions.json", tmp_path / "lines.jsonl"
    regions.write_text('[{"kind": "box", "xyxy": [10, 10, 90, 80]}, {"kind": "whole_image"}]')
    assert run(clip, "--regions", regions, "--jsonl", lines)[0] == 0
    by_flags = tmp_path / "by_flags.jsonl"
    assert run(clip, "--box", "10,10,90,80", "--whole", "--jsonl", by_flags)[0] == 0
    one, other = (
        [json.loads(line)["captions"] for line in file.read_text().splitlines()] for file in (lines, by_flags)
    )
    assert one == other


def test_new_captions_are_printed_with_their_time(run: Run, clip: Path) -> None:
    code, out, _ = run(clip, "--whole", "--every", "2")
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()] == ["0.00", "0.40", "0.80"]
    code, out, _ = run(clip, "--whole", "--every", "4", "--reuse", "0")
    assert len(out.splitlines()) == 3


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["none.mp4"], 1, "none.mp4: no such file or folder"),
        (["CLIP", "--box", "500,500,600,600"], 2, "lies outside the image"),
        (["CLIP", "--save", "out.txt"], 1, "out.txt: expected a video's ending"),
        (["CLIP", "--jsonl", "nowhere/out.jsonl"], 1, "the folder nowhere does not exist"),
        (["CLIP", "--every", "0"], 2, "every: expected a whole number from 1 on"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(
    run: Run, clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], code: int, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    got, out, err = run(*[str(clip) if one == "CLIP" else one for one in arguments])
    assert (got, out) == (code, "")
    assert message in err
    assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("fault", "code"), [(VideoError("rtsp://front: lost: timed out"), 1), (KeyboardInterrupt(), 130)]
)
def test_a_stream_that_breaks_off_leaves_what_it_came_to(
    run: Run, clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: BaseException, code: int
) -> None:
    following = CaptionStream.__next__

    def breaking(self: CaptionStream) -> FrameCaptions:
        described = following(self)
        if described.frame.number == 5:
            raise fault
        return described

    monkeypatch.setattr(CaptionStream, "__next__", breaking)
    drawn, lines = tmp_path / "drawn.mp4", tmp_path / "lines.jsonl"
    got, _, err = run(clip, "--whole", "--save", drawn, "--jsonl", lines)
    assert got == code
    assert err.count("\n") == 1
    assert len(lines.read_text().splitlines()) == 5
    assert len(frames_of(drawn)) == 5
    assert len(list(tmp_path.iterdir())) == 2


def test_a_full_disk_leaves_the_old_file_and_whole_lines_beside_it(
    demo: Captioner, clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "lines.jsonl"
    path.write_text("old")
    described, notes = next(iter(demo.stream(clip, []))), list[str]()

    def write_half(file: BinaryIO, data: bytes) -> None:
        file.write(data[: len(data) // 2])
        raise OSError(28, "No space left on device")

    def write_until_it_is_full() -> None:
        with json_lines(Output(path), notes.append) as lines:
            lines.add(described)
            monkeypatch.setattr("runtime.output.recording.write_whole", write_half)
            lines.add(described)

    with pytest.raises(PatchcaptionError, match="lines.jsonl: cannot be written: No space left on device$"):
        write_until_it_is_full()
    assert path.read_text() == "old"
    (part,) = tmp_path.glob("lines.part-*.jsonl")
    assert notes == [f"{path} is as it was; what was written is in {part}"]
    assert len([json.loads(line) for line in part.read_text().splitlines()]) == 1


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv", ".avi"])
def test_a_video_can_be_read_while_it_is_written(demo: Captioner, tmp_path: Path, suffix: str) -> None:
    described = next(iter(demo.stream([frame_image(0)], [])))
    with annotated_video(Output(tmp_path / f"out{suffix}"), print, Fraction(5)) as recorder:
        for number in range(8):
            recorder.add(replace(described, frame=Frame(number, number / 5, described.frame.image)))
        (part,) = tmp_path.iterdir()
        assert len(frames_of(part)) >= 7
    with av.open(str(tmp_path / f"out{suffix}")) as container:
        assert container.streams.video[0].average_rate == 5
        assert [frame.time for frame in container.decode(video=0)][-1] == pytest.approx(7 / 5, abs=0.21)
    assert len(frames_of(tmp_path / f"out{suffix}")) == 8


def test_outputs_may_be_stdout_pipes_and_devices(clip: Path, demo_bundle: Path, capfdbinary: CaptureBytes) -> None:
    flags = ["video", str(clip), "--bundle", str(demo_bundle), "--whole"]
    assert main([*flags, "--jsonl", "-", "--save", "/dev/null"]) == 0
    assert len([json.loads(line) for line in capfdbinary.readouterr().out.splitlines()]) == FRAMES
    assert main([*flags, "--save", "-"]) == 0
    out, err = capfdbinary.readouterr()
    with av.open(io.BytesIO(out)) as container:
        assert len(list(container.decode(video=0))) == FRAMES
    assert err.count(b"\n") == 3, "new captions, which are not mixed into the video"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--save", "clip.mp4"], "--save clip.mp4: clip.mp4 is read, and would be overwritten"),
        (["--save", "link.mp4"], "--save link.mp4: clip.mp4 is read"),
        (["--jsonl", "hard.jsonl"], "--jsonl hard.jsonl: clip.mp4 is read"),
        (["--save", "x.mp4", "--jsonl", "./x.mp4"], "--jsonl ./x.mp4: --save writes there too"),
        (["--save", "-", "--jsonl", "-"], "--jsonl stdout: --save writes there too"),
        (["--regions", "regions.json", "--jsonl", "regions.json"], "--jsonl regions.json: regions.json is read"),
        (["--jsonl", "BUNDLE/manifest.json"], "manifest.json is read"),
        (["--jsonl", "/dev/full"], "/dev/full: cannot be written: No space left on device"),
    ],
)
def test_nothing_that_is_read_is_written_over(
    run: Run, clip: Path, demo_bundle: Path, work_dir: Path, flags: list[str], message: str
) -> None:
    Path("clip.mp4").write_bytes(clip.read_bytes())
    Path("link.mp4").symlink_to("clip.mp4")
    Path("hard.jsonl").hardlink_to("clip.mp4")
    Path("regions.json").write_text('[{"kind": "whole_image"}]')
    code, _, err = run("clip.mp4", *[flag.replace("BUNDLE", str(demo_bundle)) for flag in flags])
    assert code == 1
    assert message in err
    assert err.count("\n") == 1
    assert Path("clip.mp4").read_bytes() == clip.read_bytes()
    assert len(list(work_dir.iterdir())) == 4


def test_a_reader_of_stdout_that_goes_does_not_end_what_is_saved(
    run: Run, clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def show(*_: object) -> None:
        raise BrokenPipeError

    monkeypatch.setattr("runtime.cli.video_outputs.show", show)
    code, out, err = run(clip, "--whole", "--save", tmp_path / "out.mp4")
    assert (code, out, err) == (0, "", "")
    assert len(frames_of(tmp_path / "out.mp4")) == FRAMES


def test_frames_without_a_time_or_of_odd_size_are_written_too(demo: Captioner, tmp_path: Path) -> None:
    images = [frame_image(number).resize((161, 121)) for number in range(3)]
    with annotated_video(Output(tmp_path / "out.mp4"), print) as recorder:
        for described in demo.stream(images, []):
            recorder.add(described)
    drawn = frames_of(tmp_path / "out.mp4")
    assert [(frame.width, frame.height) for frame in drawn] == [(160, 120)] * 3
    assert [frame.time for frame in drawn] == pytest.approx([0, 0.1, 0.2], abs=1e-3)
