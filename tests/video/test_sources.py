"""Files, cameras and URLs: what may be opened, how large frames may be, and what happens to sources that are lost."""

from __future__ import annotations

import io
import os
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from pathlib import Path
from typing import Any

import av
import pytest
from PIL import Image

from runtime import Captioner, ImageError, VideoError, WholeImage
from runtime.image import open_image
from runtime.options import StreamOptions
from runtime.video import pyav, sources
from runtime.video.addresses import VideoAddress
from runtime.video.sources import open_source
from tests.children import run_child
from tests.conftest import write_clip

WH, FRAMES = (160, 120), 12


def images(number: int = FRAMES) -> list[Image.Image]:
    return [Image.new("RGB", WH, (20 * index, 90, 40)) for index in range(number)]


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(tmp_path_factory.mktemp("clips") / "clip.mp4", images())


@pytest.fixture(scope="module")
def broadcast(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A video as a camera sends it: of a format that has no length."""
    return write_clip(tmp_path_factory.mktemp("clips") / "clip.ts", images(), rate=25).read_bytes()


def numbers(source: Any, **options: Any) -> list[int]:
    return [frame.number for frame in open_source(source, StreamOptions(**options)).frames()]


class Cameras:
    """A server on this machine that sends to each that connects what its turn has, and closes or stays silent."""

    def __init__(self, turns: Sequence[bytes], *, is_silent: bool = False) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"tcp://127.0.0.1:{self._listener.getsockname()[1]}"
        self._open: list[socket.socket] = []
        threading.Thread(target=self._serve, args=(turns, is_silent), daemon=True).start()

    def _serve(self, turns: Sequence[bytes], is_silent: bool) -> None:
        for content in turns:
            connection, _ = self._listener.accept()
            connection.sendall(content)
            if is_silent:
                self._open.append(connection)
            else:
                connection.close()
        if not is_silent:
            self._listener.close()

    def close(self) -> None:
        for one in (self._listener, *self._open):
            one.close()


@contextmanager
def http_server(folder: Path) -> Iterator[str]:
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize(
    "text", ["ffconcat version 1.0\nfile clip.mp4\n", "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nclip.mp4\n"]
)
@pytest.mark.parametrize("name", ["list.mp4", "list.m3u8", "list.txt", "list.mpd"])
def test_a_file_plays_no_other(clip: Path, tmp_path: Path, text: str, name: str) -> None:
    (tmp_path / "clip.mp4").write_bytes(clip.read_bytes())
    (tmp_path / name).write_text(text)
    for source in (tmp_path / name, (tmp_path / name).as_uri()):
        with pytest.raises(VideoError, match=f"{name}: cannot be opened: "):
            open_source(source)


def test_a_file_is_a_file_whatever_its_name(clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("concat:a|b", "data:,x", "-", "a%03d.mp4", "pipe:0"):
        Path(name).write_bytes(clip.read_bytes())
        assert numbers(name) == list(range(FRAMES))


@pytest.mark.parametrize("url", ["concat://a|b", "subfile://etc/passwd", "ftp://robot/a.mp4", "pipe://0", "data://x"])
def test_urls_of_other_kinds_are_refused(url: str) -> None:
    with pytest.raises(VideoError, match="expected a URL that begins with file, http, https, .*rtsp"):
        open_source(url)


@pytest.mark.parametrize("suffix", ["mkv", "avi", "ts", "mov", "gif", "flv", "wmv"])
def test_the_usual_files_are_read(tmp_path: Path, suffix: str) -> None:
    codec = {"gif": "gif", "flv": "flv", "wmv": "wmv2"}.get(suffix, "mpeg4")
    with av.open(str(tmp_path / f"clip.{suffix}"), "w") as container:
        stream: Any = container.add_stream(codec, rate=25)
        stream.width, stream.height, stream.pix_fmt = *WH, "rgb8" if suffix == "gif" else "yuv420p"
        for image in images():
            container.mux(stream.encode(av.VideoFrame.from_image(image)))  # type: ignore[no-untyped-call]
        container.mux(stream.encode())
    assert len(numbers(tmp_path / f"clip.{suffix}")) == FRAMES


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("/dev/zero")])
def test_what_is_no_regular_file_is_refused(tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path / "a.mp4")
    with pytest.raises(VideoError, match="a.mp4: expected a file or a folder; a camera is named by its number"):
        open_source(tmp_path / "a.mp4")


@pytest.mark.parametrize("name", ["a" * 300, "a\0b"])
def test_impossible_names_are_an_error_of_ours(name: str) -> None:
    with pytest.raises(VideoError):
        open_source(name)


@pytest.mark.parametrize("method", ["is_dir", "iterdir"])
def test_an_unreadable_folder_is_an_error_of_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    def refuse(_: Path) -> Any:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, method, refuse)
    with pytest.raises(VideoError, match="cannot be read: Permission denied"):
        open_source(tmp_path)


def test_a_title_in_latin_1_is_no_obstacle(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "clip.avi"), "w") as container:
        stream: Any = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = *WH, "yuv420p"
        container.metadata["title"] = "Cafe"
        for image in images(3):
            container.mux(stream.encode(av.VideoFrame.from_image(image)))  # type: ignore[no-untyped-call]
        container.mux(stream.encode())
    content = (tmp_path / "clip.avi").read_bytes()
    assert b"Cafe" in content
    (tmp_path / "clip.avi").write_bytes(content.replace(b"Cafe", b"Caf\xe9"))
    assert numbers(tmp_path / "clip.avi") == [0, 1, 2]


@pytest.mark.parametrize("fault", [ValueError("odd"), ZeroDivisionError(), UnicodeDecodeError("utf-8", b"x", 0, 1, "")])
def test_a_frame_that_cannot_be_converted_is_counted(
    clip: Path, monkeypatch: pytest.MonkeyPatch, fault: Exception
) -> None:
    upright, calls = pyav._upright, list[int]()

    def convert(decoded: av.VideoFrame) -> Any:
        calls.append(1)
        if len(calls) == 3:
            raise fault
        return upright(decoded)

    monkeypatch.setattr(pyav, "_upright", convert)
    source = open_source(clip)
    assert [frame.number for frame in source.frames()] == [0, 1, *range(3, FRAMES)]
    assert source.decode_errors == 1


BOMB = """
import sys
from runtime import Captioner, VideoError, WholeImage
from runtime.video.sources import open_source
try:
    print(sum(1 for _ in open_source(sys.argv[1]).frames()))
except VideoError as error:
    print(error)
"""


@pytest.mark.slow
def test_a_video_bomb_is_refused_in_little_memory(tmp_path: Path) -> None:
    png = io.BytesIO()
    Image.new("1", (16_000, 16_000)).save(png, "png")
    with av.open(str(tmp_path / "bomb.mov"), "w") as container:
        stream: Any = container.add_stream("png", rate=1)
        stream.width, stream.height, stream.pix_fmt = 16_000, 16_000, "monob"
        for index in range(4):
            packet = av.Packet(png.getvalue())
            packet.stream, packet.pts, packet.dts = stream, index * 12_800, index * 12_800
            container.mux(packet)
    assert (tmp_path / "bomb.mov").stat().st_size < 4 << 20
    result = run_child(BOMB, tmp_path / "bomb.mov", memory_mib=4096)
    assert "bomb.mov: " in result.stdout
    assert "89478485" in result.stdout
    assert "PIL.Image.MAX_IMAGE_PIXELS" in result.stdout


def test_the_limit_of_pixels_is_one_for_images_and_videos(
    clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = tmp_path / "image.png"
    images(1)[0].save(image)
    for limit, is_open in ((WH[0] * WH[1], True), (WH[0] * WH[1] - 1, False), (None, True)):
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        if is_open:
            assert open_image(image).size == WH
            assert len(numbers(clip)) == FRAMES
            continue
        for source in (image, image.read_bytes(), Image.open(image)):
            with pytest.raises(ImageError, match="expected at most 19199 pixels, got 160 x 120"):
                open_image(source)
        with pytest.raises(VideoError, match="expected at most 19199 pixels, got 160 x 120"):
            open_source(clip)


def test_videos_of_known_length_wait_wherever_they_are(clip: Path, demo: Captioner) -> None:
    with http_server(clip.parent) as address:
        for url in (clip.as_uri(), f"{address}/clip.mp4"):
            source = open_source(url)
            assert not source.is_live
            with demo.stream(url, [WholeImage()], reuse=None) as stream:
                assert [result.frame.number for result in stream] == list(range(FRAMES))
            assert stream.dropped == 0


@pytest.mark.slow
def test_a_source_that_is_closed_from_the_other_side_is_lost(broadcast: bytes, demo: Captioner) -> None:
    with closing(Cameras([broadcast])) as camera:
        found = list[int]()
        with pytest.raises(VideoError, match=f"{camera.url}: lost: the other side has closed it"):
            found.extend(result.frame.number for result in demo.stream(camera.url, [WholeImage()], policy="block"))


def test_a_silent_source_is_lost_after_its_time(broadcast: bytes, demo: Captioner) -> None:
    with closing(Cameras([broadcast], is_silent=True)) as camera:
        stream = demo.stream(camera.url, [WholeImage()], timeout_s=0.3, policy="block")
        with pytest.raises(VideoError, match=f"{camera.url}: lost: silent for 0.3 s"):
            list(stream)


def test_silence_counts_though_a_parser_gives_out_its_last_packet(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = pyav.VideoInput(VideoAddress.of_file(str(clip)), timeout_s=2)
    clock = count(step=3)
    monkeypatch.setattr(pyav, "monotonic", lambda: next(clock))
    pictures = opened.pictures()
    with pytest.raises(VideoError, match=f"{clip}: lost: silent for 2 s"):
        assert len(list(pictures)) <= 1


def test_a_source_that_never_answers_is_not_opened(demo: Captioner) -> None:
    with (
        closing(Cameras([b""], is_silent=True)) as camera,
        pytest.raises(VideoError, match=f"{camera.url}: cannot be opened: no answer in 0.3 s"),
    ):
        demo.stream(camera.url, [WholeImage()], timeout_s=0.3)


def test_a_silent_source_is_left_at_once(broadcast: bytes, demo: Captioner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runtime.video.stream._SECONDS_TO_LEAVE", 0.01)
    with closing(Cameras([broadcast], is_silent=True)) as camera:
        stream = demo.stream(camera.url, [WholeImage()], timeout_s=600)
        assert next(stream).captions
        stream.close()  # in far less than its 600 s
        assert list(stream) == []


def test_a_lost_source_is_opened_again_and_its_frames_go_on(broadcast: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "_FIRST_PAUSE_S", 0.01)
    with closing(Cameras([broadcast] * 3)) as camera:
        source = open_source(camera.url, StreamOptions(reconnect_s=0.5))
        found: list[tuple[int, float | None]] = []
        with pytest.raises(VideoError, match=f"{camera.url}: cannot be opened: Connection refused"):
            found.extend((frame.number, frame.seconds) for frame in source.frames())
    assert source.reconnects == 2
    assert [number for number, _ in found] == list(range(len(found)))
    assert len(found) > 2 * (FRAMES - 1)


def test_a_source_that_is_tried_again_is_left_at_once(broadcast: bytes, demo: Captioner) -> None:
    with closing(Cameras([broadcast])) as camera:
        stream = demo.stream(camera.url, [WholeImage()], reconnect_s=float("inf"), policy="block")
        assert next(stream).captions
        stream.close()
        assert list(stream) == []
