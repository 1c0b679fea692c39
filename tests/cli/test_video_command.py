"""`patchcaption video`: what it prints and writes, and what is left when it breaks off."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import av
import pytest

from runtime import Captioner, FrameCaptions, PatchcaptionError, VideoError
from runtime.cli.main import main
from runtime.output.video_file import annotated_video, json_lines
from runtime.video.stream import CaptionStream
from tests.conftest import write_clip
from tests.video.test_stream import FRAMES, WH, frame_image

Run = Callable[..., tuple[int, str, str]]


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
        (["CLIP", "--every", "0"], 1, "every: expected at least 1"),
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


def test_a_full_disk_leaves_the_old_file(demo: Captioner, clip: Path, tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    path.write_text("old")

    def write_until_it_is_full() -> None:
        with json_lines(path) as lines:
            lines.add(described)
            raise OSError(28, "No space left on device")

    described = next(iter(demo.stream(clip, [])))
    with pytest.raises(PatchcaptionError, match="lines.jsonl: cannot be written: .*No space left"):
        write_until_it_is_full()
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["lines.jsonl"]


def test_frames_without_a_time_or_of_odd_size_are_written_too(demo: Captioner, tmp_path: Path) -> None:
    images = [frame_image(number).resize((161, 121)) for number in range(3)]
    with annotated_video(tmp_path / "out.mp4") as recorder:
        for described in demo.stream(images, []):
            recorder.add(described)
    drawn = frames_of(tmp_path / "out.mp4")
    assert [(frame.width, frame.height) for frame in drawn] == [(160, 120)] * 3
    assert [frame.time for frame in drawn] == pytest.approx([0, 0.1, 0.2], abs=1e-3)
