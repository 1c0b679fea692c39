"""Streams of frames: sources of every kind, slow consumers, reused captions, faults."""

from __future__ import annotations

import struct
import threading
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from runtime import (
    Box,
    Caption,
    Captioner,
    FeatureMap,
    Frame,
    FrameCaptions,
    ImageError,
    Mask,
    PatchcaptionError,
    Region,
    RegionError,
    VideoError,
    WholeImage,
)
from runtime.encoder import EncodeFunction, Encoder
from runtime.features import RegionVectors
from runtime.options import DecodingOptions
from runtime.regions.detections import as_regions
from runtime.video.reuse import CaptionReuse
from runtime.video.sources import FrameSource, open_source
from tests.conftest import write_clip

WH = (160, 120)
FRAMES = 12
REGIONS: list[Region] = [Box(10, 10, 90, 80), WholeImage()]


def frame_image(number: int) -> Image.Image:
    """Return an image that differs a lot from those of other numbers."""
    random = np.random.default_rng(number)
    small = Image.fromarray(random.integers(0, 256, (6, 8, 3), np.uint8))
    return small.resize(WH, Image.Resampling.BICUBIC)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(tmp_path_factory.mktemp("clips") / "clip.mp4", [frame_image(number) for number in range(FRAMES)])


@pytest.fixture
def no_threads_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    for thread in set(threading.enumerate()) - before:
        thread.join(timeout=20)  # threads of a dropped stream end at their next frame
        assert not thread.is_alive(), thread.name


def texts(captions: list[Caption]) -> list[str]:
    return [caption.text for caption in captions]


def test_only_a_small_backbone_is_opened_for_two_workers(
    demo: Captioner, clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    requested: list[int] = []

    def for_callers(callers: int) -> EncodeFunction:
        requested.append(callers)
        return demo.pipeline.encoder

    monkeypatch.setattr(demo.pipeline.encoder, "for_callers", for_callers)
    list(demo.stream(clip, REGIONS))
    monkeypatch.setattr("runtime.encoder._SMALL_BACKBONE_BYTES", 1 << 20)
    list(demo.stream(clip, REGIONS))
    assert requested == [2, 1]


@pytest.mark.parametrize(
    ("matrix", "corner_red", "size"),  # ISO 14496-12, 8.3.2: a b c d of (p, q) -> (a p + c q, b p + d q)
    [
        ((1, 0, 0, 1), (0, 0), (160, 120)),
        ((0, 1, -1, 0), (-1, 0), (120, 160)),  # a quarter clockwise: top left goes to top right
        ((-1, 0, 0, -1), (-1, -1), (160, 120)),
        ((0, -1, 1, 0), (0, -1), (120, 160)),
    ],
)
def test_a_phones_video_is_upright(
    tmp_path: Path, matrix: tuple[int, ...], corner_red: tuple[int, int], size: tuple[int, int]
) -> None:
    image = Image.new("RGB", WH, (0, 0, 255))
    image.paste((255, 0, 0), (0, 0, 60, 40))
    file = write_clip(tmp_path / "phone.mp4", [image] * 2)
    content = bytearray(file.read_bytes())
    offset = content.index(b"tkhd") + 44  # version 0: behind times, id, duration, layer, group and volume
    a, b, c, d = matrix
    struct.pack_into(">9i", content, offset, *(65536 * number for number in (a, b, 0, c, d, 0, 0, 0, 16384)))
    file.write_bytes(content)
    frame = next(iter(open_source(file).frames()))
    assert isinstance(frame.image, np.ndarray)
    height, width, _ = frame.image.shape
    assert (width, height) == size
    column, row = (5 if side == 0 else edge - 5 for side, edge in zip(corner_red, size, strict=True))
    red, _, blue = frame.image[row, column]
    assert red > 200
    assert blue < 60


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.usefixtures("no_threads_left")
def test_a_file_gives_every_frame_in_order_with_its_time(demo: Captioner, clip: Path, workers: int) -> None:
    found = list(demo.stream(clip, REGIONS, reuse=None, workers=workers))
    assert [result.frame.number for result in found] == list(range(FRAMES))
    assert [result.frame.seconds for result in found] == pytest.approx([number / 10 for number in range(FRAMES)])
    assert sum(result.dropped for result in found) == 0
    assert all(result.latency_ms > 0 for result in found)
    for result in found[::5]:
        expected = demo.caption(result.frame.image, REGIONS)
        assert result.captions == expected


@pytest.mark.slow
@pytest.mark.usefixtures("no_threads_left")
def test_each_kind_of_source_gives_the_same_frames(demo: Captioner, clip: Path, tmp_path: Path) -> None:
    images = [np.asarray(result.frame.image) for result in demo.stream(clip, [])]
    for number, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / f"{number:03}.png")
    (tmp_path / "notes.txt").write_text("not an image")
    sources: list[Any] = [str(clip), tmp_path, images, (Frame(5 + n, n / 2, image) for n, image in enumerate(images))]
    expected = [texts(result.captions) for result in demo.stream(clip, REGIONS, reuse=None)]
    for source in sources:
        with demo.stream(source, REGIONS, policy="block", reuse=None) as stream:
            found = list(stream)
        assert [texts(result.captions) for result in found] == expected
    assert [(result.frame.number, result.frame.seconds) for result in found[:2]] == [(5, 0.0), (6, 0.5)]
    assert open_source(clip).frame_count == open_source(images).frame_count == FRAMES


def test_cameras_and_urls_do_not_wait_but_files_folders_and_iterables_do(
    clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    frame_image(0).save(tmp_path / "a.png")
    sources: list[FrameSource] = [clip, tmp_path, [frame_image(0)], iter(())]
    assert not any(open_source(one).is_live for one in sources)
    opened: list[tuple[Any, ...]] = []
    av_open = av.open

    def open_clip(url: str, **options: Any) -> Any:
        transport = options["options"].get("rtsp_transport")
        opened.append((url, options["format"], transport, options["timeout"] is not None))
        return av_open(str(clip))

    monkeypatch.setattr(av, "open", open_clip)
    assert open_source(2).is_live
    assert open_source("rtsp://robot/front").is_live
    assert opened == [("/dev/video2", "v4l2", None, True), ("rtsp://robot/front", None, "tcp", True)]


class Gate:
    """An encoder that encodes one frame for each release of ``may_go``.

    Attributes:
        waiting: released by each frame that waits to be encoded.
    """

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder
        self.may_go, self.waiting = threading.Semaphore(0), threading.Semaphore(0)

    def __call__(self, images: Any) -> FeatureMap:
        self.waiting.release()
        self.may_go.acquire()
        return self._encoder(images)

    def for_callers(self, callers: int) -> Gate:
        assert callers == 1
        return self


@pytest.fixture
def gate(demo: Captioner, monkeypatch: pytest.MonkeyPatch) -> Gate:
    """The gate that frames of the demo must pass to be encoded."""
    gate = Gate(demo.pipeline.encoder)
    monkeypatch.setattr(demo.pipeline, "encoder", gate)
    return gate


def test_a_slow_consumer_gets_the_newest_frames_of_a_live_source(demo: Captioner, gate: Gate) -> None:
    all_read = threading.Event()

    def camera() -> Iterator[Image.Image]:
        yield frame_image(0)
        gate.waiting.acquire()  # the first frame is being encoded, so that the others wait
        yield from map(frame_image, range(1, 10))
        all_read.set()

    with demo.stream(camera(), REGIONS, workers=1, policy="drop") as stream:
        all_read.wait()
        for _ in range(10):
            gate.may_go.release()
        found = list(stream)
    numbers = [result.frame.number for result in found]
    assert numbers[0] == 0
    assert numbers[-2:] == [8, 9]
    assert len(found) <= 5
    assert stream.dropped == 10 - len(found)
    assert sum(result.dropped for result in found) == stream.dropped
    gaps = [later - earlier - 1 for earlier, later in pairwise(numbers)]
    assert [result.dropped for result in found[1:]] == gaps


def test_a_source_that_waits_loses_nothing_and_runs_no_further_ahead_than_it_may(demo: Captioner, gate: Gate) -> None:
    read: list[int] = []

    def images() -> Iterator[Image.Image]:
        for number in range(20):
            read.append(number)
            yield frame_image(number)

    with demo.stream(images(), REGIONS, policy="block", workers=1) as stream:
        gate.waiting.acquire()
        ahead = len(read)
        for _ in range(20):
            gate.may_go.release()
        found = list(stream)
    assert [result.frame.number for result in found] == list(range(20))
    assert ahead <= 6


def test_only_each_nth_frame_is_described(demo: Captioner, clip: Path) -> None:
    found = list(demo.stream(clip, REGIONS, every=5))
    assert [result.frame.number for result in found] == [0, 5, 10]


def test_a_still_scene_costs_the_backbone_only(demo: Captioner, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[int] = []
    describe_vectors = demo.pipeline.describe_vectors

    def recording(vectors: RegionVectors, options: DecodingOptions) -> list[Caption]:
        decoded.append(len(vectors))
        return describe_vectors(vectors, options)

    still, other = frame_image(1), frame_image(2)
    with monkeypatch.context() as patch:
        patch.setattr(demo.pipeline, "describe_vectors", recording)
        found = list(demo.stream([still] * 4 + [other] * 2 + [still], REGIONS))
    assert decoded == [2, 2, 2]
    reused = [all(one.reused for one in result.captions) for result in found]
    assert reused == [False, True, True, True, False, True, False]
    assert texts(found[3].captions) == texts(demo.caption(still, REGIONS))
    assert [one.region for one in found[3].captions] == REGIONS


def test_captions_are_reused_by_what_regions_look_like_and_slow_changes_add_up() -> None:
    reuse, decoded = CaptionReuse(0.99), list[Tensor]()

    def captions_of(*directions: Tensor) -> list[Caption]:
        return reuse.captions(RegionVectors(torch.cat(directions)), decode)

    def decode(vectors: RegionVectors) -> list[Caption]:
        decoded.append(vectors.data)
        return [Caption(str(len(decoded)), 1.0, ()) for _ in vectors.data]

    east, north = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    assert texts(captions_of(east, north)) == ["1", "1"]
    swapped = captions_of(2 * north, east, north)
    assert [caption.reused for caption in swapped] == [True, True, True]
    turned = [torch.tensor([[np.cos(angle), np.sin(angle)]], dtype=torch.float32) for angle in (0.1, 0.2, 0.3)]
    assert [texts(captions_of(direction)) for direction in turned] == [["1"], ["2"], ["2"]]
    assert captions_of(torch.empty(0, 2)) == []
    assert texts(captions_of(turned[2])) == ["3"], "nothing is left of the frames before"


def test_only_regions_that_have_changed_are_decoded_in_the_space_they_are_in() -> None:
    reuse, decoded = CaptionReuse(0.99), list[RegionVectors]()

    def decode(vectors: RegionVectors) -> list[Caption]:
        decoded.append(vectors)
        return [Caption("", 1.0, ()) for _ in vectors.data]

    data = torch.eye(3)
    reuse.captions(RegionVectors(data, "text"), decode)
    found = reuse.captions(RegionVectors(data * torch.tensor([1.0, -1.0, 1.0]), "text"), decode)
    assert [caption.reused for caption in found] == [True, False, True]
    assert [vectors.space for vectors in decoded] == ["text", "text"]
    torch.testing.assert_close(decoded[1].data, -data[1:2])


@pytest.mark.usefixtures("no_threads_left")
def test_regions_may_come_from_a_detector(demo: Captioner, clip: Path) -> None:
    calls: list[tuple[int, str]] = []

    def detect(frame: Frame) -> Any:
        calls.append((frame.number, threading.current_thread().name))
        x = 5.0 * frame.number
        return SimpleNamespace(xyxy=np.array([[x, 10, x + 60, 90], [-20, -5, 400, 300]]), mask=None)

    found = list(demo.stream(clip, detect))
    assert [number for number, _ in calls] == list(range(FRAMES))
    assert len({name for _, name in calls}) == 1
    assert found[3].captions[0].region == Box(15, 10, 75, 90)
    assert found[3].captions[1].region == Box(0, 0, *WH)
    assert texts(found[3].captions) == texts(demo.caption(found[3].frame.image, [Box(15, 10, 75, 90), Box(0, 0, *WH)]))


def test_detections_become_boxes_or_masks() -> None:
    masks = np.zeros((2, 4, 6), bool)
    masks[0, 1, 2] = masks[1, 3] = True
    by_mask = as_regions(SimpleNamespace(xyxy=np.zeros((2, 4)), mask=masks), (6, 4))
    assert [isinstance(region, Mask) for region in by_mask] == [True, True]
    boxes = as_regions(SimpleNamespace(xyxy=torch.tensor([[1, 2, 3, 4]])), (6, 4))
    assert boxes == [Box(1, 2, 3, 4)]
    assert as_regions(SimpleNamespace(xyxy=np.empty((0, 4))), (6, 4)) == []
    assert as_regions([WholeImage()], (6, 4)) == [WholeImage()]
    for wrong, message in (
        ("box", "expected a list of regions, got str; boxes .*"),
        (SimpleNamespace(xyxy=np.zeros(4)), r"xyxy of shape \(n, 4\), got \(4,\)"),
        (
            SimpleNamespace(xyxy=np.array([[1, 1, 3, 3], [9, 1, 12, 3]])),
            "detections: row 1: Box.x1=9.0.* lies outside the image of 6 x 4 pixels",
        ),
    ):
        with pytest.raises(RegionError, match=message):
            as_regions(wrong, (6, 4))  # type: ignore[arg-type]


@pytest.mark.usefixtures("no_threads_left")
def test_a_stream_may_be_left_at_any_time(demo: Captioner, clip: Path) -> None:
    given_back: list[bool] = []

    def endless() -> Iterator[Image.Image]:
        try:
            while True:
                yield frame_image(len(given_back))
        finally:
            given_back.append(True)

    with demo.stream(endless(), REGIONS) as stream:
        assert next(stream).captions
    assert given_back == [True]
    assert list(stream) == []
    for result in demo.stream(clip, REGIONS):
        assert result.captions
        break
    demo.stream(clip, REGIONS).close()


def test_images_that_cannot_be_read_are_counted_and_skipped(demo: Captioner, tmp_path: Path) -> None:
    for number in range(4):
        frame_image(number).save(tmp_path / f"{number}.png")
    (tmp_path / "1.png").write_bytes(b"no image")
    with demo.stream(tmp_path, REGIONS) as stream:
        assert [result.frame.number for result in stream] == [0, 2, 3]
    assert stream.source.decode_errors == 1


class Container:
    """A container whose packets pass through a function."""

    def __init__(self, container: Any, change: Callable[[Iterator[Any]], Iterator[Any]]) -> None:
        self._container, self._change = container, change
        self.streams = container.streams

    def __enter__(self) -> Container:
        return self

    def __exit__(self, *_: object) -> None:
        self._container.close()

    def demux(self, stream: Any) -> Iterator[Any]:
        return self._change(self._container.demux(stream))


def change_packets(monkeypatch: pytest.MonkeyPatch, change: Callable[[Iterator[Any]], Iterator[Any]]) -> None:
    """Let the packets of every container that is opened pass through a function."""
    av_open = av.open
    monkeypatch.setattr(av, "open", lambda *args, **options: Container(av_open(*args, **options), change))


def test_a_packet_that_cannot_be_decoded_is_counted_and_skipped(
    demo: Captioner, clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class BrokenPacket:
        def decode(self) -> None:
            raise av.error.InvalidDataError(1, "Invalid data found")

    def with_broken_packet(packets: Iterator[Any]) -> Iterator[Any]:
        for index, packet in enumerate(packets):
            if index == 3:
                yield BrokenPacket()
            yield packet

    change_packets(monkeypatch, with_broken_packet)
    with demo.stream(clip, []) as stream:
        numbers = [result.frame.number for result in stream]
    assert len(numbers) == FRAMES
    assert stream.source.decode_errors == 1
    assert len(set(range(FRAMES + 1)) - set(numbers)) == 1, "its number is not given to another"


@pytest.mark.usefixtures("no_threads_left")
def test_a_lost_camera_is_reported_after_the_frames_before_it(
    demo: Captioner, clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(packets: Iterator[Any]) -> Iterator[Any]:
        for index, packet in enumerate(packets):
            if index == 5:
                raise av.error.TimeoutError(110, "Connection timed out")
            yield packet

    change_packets(monkeypatch, lost)
    found: list[FrameCaptions] = []
    with pytest.raises(VideoError, match=f"{clip}: lost: Connection timed out"):
        found.extend(demo.stream(clip, REGIONS))
    assert [result.frame.number for result in found] == list(range(len(found)))
    assert found


def failing(kind: str) -> tuple[Any, Any, type[Exception], str]:
    """Return a source and regions that go wrong at frame 2, and the error that is expected."""

    def source() -> Iterator[Any]:
        yield frame_image(0)
        yield frame_image(1)
        if kind == "source":
            raise OSError("unplugged")
        yield np.zeros((3, 3, 3)) if kind == "image" else frame_image(2)

    def regions(frame: Frame) -> Any:
        if frame.number == 2 and kind == "detector":
            raise ZeroDivisionError("no anchors")
        if frame.number == 2 and kind == "region":
            return [Box(500, 500, 600, 600)]
        return "no regions" if frame.number == 2 and kind == "regions" else REGIONS

    errors: dict[str, tuple[type[Exception], str]] = {
        "source": (OSError, "unplugged"),
        "image": (ImageError, "frame 2: image array: expected dtype uint8"),
        "detector": (ZeroDivisionError, "no anchors"),
        "region": (RegionError, "frame 2: region 0: Box.* lies outside the image"),
        "regions": (RegionError, "frame 2: regions: expected a list of regions, got str"),
    }
    return source(), regions, *errors[kind]


@pytest.mark.parametrize("kind", ["source", "image", "detector", "region", "regions"])
@pytest.mark.usefixtures("no_threads_left")
def test_an_error_of_a_stage_is_raised_after_the_frames_before_it(demo: Captioner, kind: str) -> None:
    source, regions, error, message = failing(kind)
    found: list[FrameCaptions] = []
    with pytest.raises(error, match=message):
        found.extend(demo.stream(source, regions, on_bad="raise"))
    assert [result.frame.number for result in found] == [0, 1]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: folder / "none.mp4", "none.mp4: no such file or folder"),
        (lambda folder: folder, "no images in it"),
        (lambda folder: (folder / "a.mp4").write_bytes(b"no video") and folder / "a.mp4", "a.mp4: cannot be opened"),
        (lambda folder: (folder / "a.mp4").touch() or folder / "a.mp4", "a.mp4: cannot be opened"),
        (lambda _: 91, "/dev/video91: cannot be opened"),
        (lambda _: 3.5, "source: expected a file, .* got float"),
        (lambda _: b"bytes", "source: expected a file, .* got bytes"),
        (lambda _: np.zeros((4, 4, 3), np.uint8), "source: expected a file, .* got ndarray"),
        (lambda _: True, "source: expected a file, .* got bool"),
    ],
)
def test_sources_that_are_none_are_refused(
    demo: Captioner, tmp_path: Path, make: Callable[[Path], Any], message: str
) -> None:
    with pytest.raises(VideoError, match=message):
        demo.stream(make(tmp_path), REGIONS)


def test_a_folder_of_broken_images_is_an_error(demo: Captioner, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"no image")
    with pytest.raises(VideoError, match="none of its 1 images can be read"):
        list(demo.stream(tmp_path, REGIONS))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"policy": "wait"}, 'policy: expected "drop" or "block"'),
        ({"every": 0}, "every: expected a whole number from 1 on"),
        ({"workers": 0}, "workers: expected a whole number from 1 to 512"),
        ({"reuse": 1.5}, "reuse: expected a cosine"),
        ({"beams": 0}, "beams: expected a whole number"),
        ({"beems": 2}, "options: expected some of .* got beems"),
    ],
)
def test_options_that_make_no_sense_are_refused(
    demo: Captioner, clip: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(PatchcaptionError, match=message):
        demo.stream(clip, REGIONS, **options)


def test_without_pyav_the_fix_is_named(demo: Captioner, clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(VideoError, match=r"pip install 'patchcaption\[video\]'"):
        demo.stream(clip, REGIONS)
