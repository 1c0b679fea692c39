"""Streams whose parts fail, hang or give nonsense: what is lost, what is told, and that nothing waits for ever."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, ThreadPoolExecutor
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from runtime import Box, Caption, Captioner, Frame, FrameCaptions, Mask, RegionError, WholeImage
from runtime.cli.main import main
from runtime.output.as_json import frame_as_json
from tests.conftest import write_clip

WH = (160, 120)
GOOD = [10, 10, 90, 80]
GOOD_BOX = Box(10, 10, 90, 80)
NOT_EXCEPTIONS = [SystemExit, KeyboardInterrupt, GeneratorExit, asyncio.CancelledError, CancelledError]


def frame_image(number: int) -> Image.Image:
    return Image.new("RGB", WH, (20 * number, 90, 200 - 20 * number))


def within_time(work: Callable[[], Any]) -> Any:
    """Return the result of work that would hang if it went wrong, or raise its error."""
    threads = ThreadPoolExecutor(1)
    try:
        return threads.submit(work).result(timeout=60)
    finally:
        threads.shutdown(wait=False)


@pytest.mark.parametrize("error", NOT_EXCEPTIONS)
@pytest.mark.parametrize("place", ["detector", "source", "image", "region"])
def test_an_error_of_any_class_reaches_the_caller(demo: Captioner, place: str, error: type[BaseException]) -> None:
    def fail(*_: object) -> Any:
        raise error

    def source() -> Iterator[Any]:
        yield frame_image(0)
        yield SimpleNamespace(read=fail) if place == "image" else frame_image(1)
        if place == "source":
            fail()

    def regions(frame: Frame) -> Any:
        if frame.number == 1 and place == "detector":
            fail()
        return [SimpleNamespace(weights=fail)] if frame.number == 1 and place == "region" else [WholeImage()]

    found: list[FrameCaptions] = []
    with demo.stream(source(), regions) as stream:

        def follow() -> None:
            try:
                for result in stream:
                    found.append(result)
            except error:
                found.append(None)  # type: ignore[arg-type]  # in place of what a test's thread cannot raise

        within_time(follow)
        assert found[-1] is None
        assert found[0].frame.number == 0
        assert list(stream) == []


@pytest.mark.parametrize("place", ["detector", "region"])
def test_a_stop_iteration_is_no_end(demo: Captioner, place: str) -> None:
    def stop(*_: object) -> Any:
        raise StopIteration

    regions: Any = stop if place == "detector" else [SimpleNamespace(weights=stop)]
    with pytest.raises(RuntimeError, match="StopIteration"):
        within_time(lambda: list(demo.stream([frame_image(0)] * 3, regions)))


@pytest.mark.parametrize("place", ["source", "detector"])
def test_a_stream_is_left_while_its_source_or_detector_waits(
    demo: Captioner, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    monkeypatch.setattr("runtime.video.stream._SECONDS_TO_LEAVE", 0.01)
    reached, may_go = threading.Event(), threading.Event()

    def wait(_: Frame | None = None) -> list[Any]:
        reached.set()
        may_go.wait()
        return [WholeImage()]

    def source() -> Iterator[Image.Image]:
        yield frame_image(0)
        if place == "source":
            wait()
        yield frame_image(1)

    before = set(threading.enumerate())
    stream = demo.stream(source(), wait if place == "detector" else [WholeImage()])
    assert reached.wait(60)
    within_time(stream.close)
    assert list(stream) == []
    may_go.set()
    for thread in set(threading.enumerate()) - before:
        thread.join(60)
        assert not thread.is_alive(), thread.name


def detections(bad_row: Any) -> Any:
    return SimpleNamespace(xyxy=np.array([GOOD, bad_row, GOOD], float))


BAD_ROWS: dict[str, tuple[Callable[[], Any], str]] = {
    "outside": (lambda: detections([170, 10, 190, 50]), "x1=170.0.* lies outside the image of 160 x 120 pixels"),
    "no area": (lambda: detections([20, 20, 20, 50]), "x1=20.0.*expected x1 < x2"),
    "inverted": (lambda: detections([50, 20, 20, 50]), "x1=50.0.*expected x1 < x2"),
    "NaN": (lambda: detections([np.nan, 20, 30, 50]), "Box x1: expected a finite number, got nan"),
    "infinite": (lambda: detections([0, 0, np.inf, 50]), "Box x2: expected a finite number, got inf"),
    "a half tensor": (
        lambda: SimpleNamespace(xyxy=torch.tensor([GOOD, [170, 10, 190, 50], GOOD], dtype=torch.bfloat16)),
        "x1=170.0.* lies outside",
    ),
    "in 0..1": (
        lambda: SimpleNamespace(xyxyn=[[0.1, 0.1, 0.5, 0.6], [1.1, 0.1, 1.2, 0.2], [0.1, 0.1, 0.5, 0.6]]),
        "x1=176.0.* lies outside",
    ),
    "an empty mask": (
        lambda: SimpleNamespace(
            xyxy=None, mask=np.stack([np.ones((120, 160)), np.zeros((120, 160)), np.eye(120, 160)])
        ),
        "Mask: it is empty",
    ),
    "a mask with NaN": (
        lambda: SimpleNamespace(mask=np.stack([np.ones((120, 160)), np.full((120, 160), np.nan), np.eye(120, 160)])),
        "Mask: expected finite numbers",
    ),
    "a region outside": (lambda: [WholeImage(), Box(500, 500, 600, 600), GOOD_BOX], "lies outside the image"),
    "a mask of another size": (lambda: [WholeImage(), Mask(np.eye(7)), GOOD_BOX], "expected the image's size"),
    "no region": (lambda: [WholeImage(), None, GOOD_BOX], "expected a Box, Mask, Trace or another .* got NoneType"),
}


@pytest.mark.parametrize("kind", BAD_ROWS)
def test_a_bad_region_has_a_reason_in_place_of_its_caption(demo: Captioner, kind: str) -> None:
    make, reason = BAD_ROWS[kind]

    def detect(frame: Frame) -> Any:
        return make() if frame.number == 1 else [GOOD_BOX] * 3

    with demo.stream([frame_image(0)] * 3, detect) as stream:
        found = list(stream)
    assert [[caption.error is None for caption in result.captions] for result in found] == [
        [True] * 3,
        [True, False, True],
        [True] * 3,
    ]
    assert (stream.bad_regions, stream.bad_frames) == (1, 0)
    bad = found[1].captions[1]
    assert (bad.text, bad.score, bad.ids) == ("", 0.0, ())
    with pytest.raises(RegionError, match=reason):
        raise RegionError(bad.error)
    good = [caption for caption in found[1].captions if caption.error is None]
    regions = [caption.region for caption in good if caption.region is not None]
    assert [one.text for one in good] == [one.text for one in demo.caption(frame_image(0), regions)]
    line = json.loads(json.dumps(frame_as_json(found[1]), allow_nan=False))
    assert ["error" in caption for caption in line["captions"]] == [False, True, False]
    with demo.stream([frame_image(0)] * 3, detect, on_bad="raise") as stream, pytest.raises(RegionError) as raised:
        list(stream)
    assert str(raised.value).startswith("frame 1: region 1: ")
    assert str(raised.value).endswith(str(bad.error))


def broken_regions(_: Frame) -> Any:
    return [Box(0, 0, float("nan"), 1)]


@pytest.mark.parametrize(
    ("image", "found", "reason"),
    [
        (b"no image", lambda _: [WholeImage()], "image bytes: not an image that Pillow can read"),
        (np.zeros((3, 3, 3)), lambda _: [WholeImage()], "image array: expected dtype uint8"),
        (frame_image(1), lambda _: None, "regions: expected a list of regions, got NoneType"),
        (frame_image(1), lambda _: SimpleNamespace(xyxy=np.zeros((2, 5))), r"xyxy of shape \(n, 4\), got \(2, 5\)"),
        (frame_image(1), lambda _: SimpleNamespace(xyxy=["a box"]), r"expected xyxy as numbers of shape \(n, 4\)"),
        (frame_image(1), lambda _: SimpleNamespace(mask=np.ones((120, 160))), r"mask of shape \(n, H, W\)"),
        (frame_image(1), broken_regions, "Box x2: expected a finite number, got nan"),
    ],
)
def test_a_bad_frame_has_a_reason_in_place_of_its_captions(
    demo: Captioner, image: Any, found: Callable[[Frame], Any], reason: str
) -> None:
    def detect(frame: Frame) -> Any:
        return found(frame) if frame.number == 1 else [WholeImage()]

    images = [frame_image(0), image, frame_image(2)]
    with demo.stream(images, detect) as stream:
        results = list(stream)
    assert [len(result.captions) for result in results] == [1, 0, 1]
    assert [result.error is None for result in results] == [True, False, True]
    assert (stream.bad_regions, stream.bad_frames) == (0, 1)
    assert frame_as_json(results[1])["error"] == results[1].error
    with demo.stream(images, detect, on_bad="raise") as stream, pytest.raises(ValueError, match=f"frame 1: .*{reason}"):
        list(stream)


def test_captions_are_reused_beside_a_bad_region(demo: Captioner) -> None:
    regions = [Box(500, 500, 600, 600), GOOD_BOX]
    found = list(demo.stream([frame_image(0)] * 2, regions))
    assert [caption.reused for caption in found[1].captions] == [False, True]
    assert found[1].captions[1].region == regions[1]
    assert found[1].captions[0] == Caption.missing(regions[0], str(found[1].captions[0].error))


def test_regions_that_are_none_are_refused_before_the_first_frame(demo: Captioner) -> None:
    with pytest.raises(RegionError, match="expected a list of regions, got int"):
        demo.stream([frame_image(0)], 7)  # type: ignore[arg-type]


@pytest.mark.slow
def test_a_generator_loses_no_frame(demo: Captioner) -> None:
    with demo.stream((frame_image(number % 9) for number in range(60)), [WholeImage()]) as stream:
        assert [result.frame.number for result in stream] == list(range(60))
    assert stream.dropped == 0


def test_boxes_in_0_to_1_are_warned_of_once_an_image_size(demo: Captioner) -> None:
    features = demo.encode(frame_image(0))
    with pytest.warns(UserWarning, match="first pixel of an image of 160 x 120.*Box.from_normalized"):
        demo.describe(features, [Box(0.1, 0.1, 0.5, 0.6)])
    assert Box.from_normalized(0.25, 0.5, 0.75, 1, WH) == Box(40, 60, 120, 120)


def test_the_command_tells_what_it_passed_over(
    demo_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clip = write_clip(tmp_path / "clip.mp4", [frame_image(number) for number in range(3)])
    command = ["video", str(clip), "--bundle", str(demo_bundle), "--whole", "--box", "500,500,600,600"]
    assert main([*command, "--jsonl", str(tmp_path / "out.jsonl")]) == 0
    assert "3 without a caption, the first: frame 0: Box" in capsys.readouterr().err
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [["error" in caption for caption in line["captions"]] for line in lines] == [[False, True]] * 3
    assert main([*command, "--on-bad", "raise"]) == 2
    assert "frame 0: region 1: Box" in capsys.readouterr().err


def test_streams_share_a_captioner_fairly(demo: Captioner) -> None:
    """Of four endless sources in one process none waits until the others are done."""
    counts = [0] * 4
    streams = [demo.stream((frame_image(n % 9) for n in count()), [WholeImage()], reuse=None) for _ in counts]

    def follow(index: int) -> None:
        while min(counts) < 5 and counts[index] < 2000:
            next(streams[index])
            counts[index] += 1

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(follow, range(4)))
    for stream in streams:
        stream.close()
    assert min(counts) >= 5
    assert max(counts) < 2000
