"""Cameras, read from a real RTSP server: how they are described, lost, tried again and left."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from runtime import Captioner, VideoError, WholeImage
from runtime.options import StreamOptions
from runtime.video import sources
from runtime.video.pyav import VideoInput
from runtime.video.sources import open_source
from tests.conftest import ROOT
from tests.video.rtsp_server import RtspServer, missing
from tests.video.test_stream_faults import within_time

_TIMEOUT_S = 2.0
"""Longer than it takes to open a camera, and to find out what it sends."""


@pytest.fixture(scope="module", autouse=True)
def packages() -> None:
    """What the server needs: there in CI, and wherever somebody has installed it."""
    reason = missing()
    if reason is not None:
        told = f"no RTSP server: {reason}; .ci/install-rtsp-server installs it"
        if os.environ.get("CI"):
            pytest.fail(told)
        pytest.skip(told)


@pytest.fixture
def server() -> Iterator[RtspServer]:
    with RtspServer() as server:
        yield server


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let lost cameras be tried again at once."""
    monkeypatch.setattr(sources, "_FIRST_PAUSE_S", 0.05)


@pytest.mark.parametrize("transport", ["tcp", "udp"])
@pytest.mark.parametrize("camera", ["h264", "mjpeg"])
def test_a_camera_is_described_until_it_is_lost(
    demo: Captioner, server: RtspServer, camera: str, transport: str
) -> None:
    url = server.url(camera, transport)
    with demo.stream(url, [WholeImage()]) as stream:
        first = list(islice(stream, 5))
        assert all(result.captions[0].text for result in first)
        times = [result.frame.seconds or 0.0 for result in first]
        assert times == sorted(times)
        server.kill()
        with pytest.raises(VideoError) as lost:
            within_time(lambda: list(stream))
    assert str(lost.value) == f"{url}: lost: the other side has closed it"


@pytest.mark.parametrize("camera", ["h264", "mjpeg"])
def test_a_silent_camera_is_lost_after_its_time(demo: Captioner, server: RtspServer, camera: str) -> None:
    with demo.stream(server.url(camera), [WholeImage()], timeout_s=_TIMEOUT_S) as stream:
        next(stream)
        server.stop()
        with pytest.raises(VideoError) as lost:
            within_time(lambda: list(stream))
    assert str(lost.value) == f"{server.url(camera)}: lost: silent for 2 s"


@pytest.mark.usefixtures("soon")
def test_a_camera_that_comes_back_goes_on(demo: Captioner, server: RtspServer) -> None:
    with demo.stream(server.url("mjpeg"), [WholeImage()], reconnect_s=60) as stream:
        before = next(stream)
        server.kill()
        server.start()
        after = within_time(lambda: next(result for result in stream if stream.source.reconnects))
        later = next(stream)
    assert stream.source.reconnects == 1
    numbers = [result.frame.number for result in (before, after, later)]
    assert numbers == sorted(set(numbers))
    seconds = [result.frame.seconds or 0.0 for result in (before, after, later)]
    assert seconds == sorted(seconds)
    assert after.captions[0].text


def test_a_camera_that_is_down_is_an_error_at_once(demo: Captioner, server: RtspServer) -> None:
    server.kill()
    with pytest.raises(VideoError, match=f"{server.url('mjpeg')}: cannot be opened: Connection refused"):
        demo.stream(server.url("mjpeg"), [WholeImage()])


def test_a_camera_that_is_down_is_tried_again_after_growing_pauses(
    demo: Captioner, server: RtspServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses = list[float]()

    class NoPause(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            pauses.append(timeout or 0.0)
            return False

    monkeypatch.setattr(sources, "Event", NoPause)
    monkeypatch.setattr(sources, "monotonic", lambda: sum(pauses))
    server.kill()
    stream = demo.stream(server.url("mjpeg"), [WholeImage()], reconnect_s=70)
    with pytest.raises(VideoError, match="cannot be opened: Connection refused"):
        within_time(lambda: list(stream))
    assert pauses == [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0]


@pytest.mark.usefixtures("soon")
def test_a_camera_that_is_not_up_yet_is_waited_for(demo: Captioner, server: RtspServer) -> None:
    server.kill()
    with demo.stream(server.url("mjpeg"), [WholeImage()], reconnect_s=60) as stream:
        server.start()
        first = within_time(lambda: next(stream))
    assert first.captions[0].text
    assert stream.source.reconnects == 0


@pytest.mark.usefixtures("soon")
@pytest.mark.parametrize("state", ["silent", "down", "silent at the second try"])
def test_a_camera_is_left_whatever_it_does(
    demo: Captioner, server: RtspServer, monkeypatch: pytest.MonkeyPatch, state: str
) -> None:
    """Reading, the pause before the next try, and opening all have far more time than `close` may take."""
    monkeypatch.setattr("runtime.video.stream._SECONDS_TO_LEAVE", 0.01)
    tried = threading.Event()
    open_input = VideoInput

    def opening(*arguments: Any) -> Any:
        tried.set()
        return open_input(*arguments)

    stream = demo.stream(server.url("mjpeg"), [WholeImage()], timeout_s=600, reconnect_s=float("inf"))
    next(stream)
    monkeypatch.setattr(sources, "VideoInput", opening)
    if state == "silent":
        server.stop()
    else:
        server.kill()
        if state == "silent at the second try":
            server.start()
            server.stop()
        assert tried.wait(60)
    within_time(stream.close)
    assert list(stream) == []


def test_two_cameras_share_a_captioner(demo: Captioner, server: RtspServer) -> None:
    with (
        demo.stream(server.url("h264"), [WholeImage()]) as one,
        demo.stream(server.url("mjpeg"), [WholeImage()]) as other,
    ):
        results = [next(stream) for _ in range(5) for stream in (one, other)]
    assert all(result.captions[0].text for result in results)


def test_no_part_of_a_camera_is_asked_for(server: RtspServer) -> None:
    with pytest.raises(VideoError, match="start_s and end_s choose a part of a file: a camera or a URL without"):
        open_source(server.url("mjpeg"), StreamOptions(start_s=1))


@pytest.mark.slow
def test_the_command_ends_at_a_signal_while_its_camera_is_silent(
    demo_bundle: Path, tmp_path: Path, server: RtspServer
) -> None:
    command = [sys.executable, "-m", "runtime", "video", server.url("mjpeg"), "--bundle", str(demo_bundle), "--whole"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [*command, "--jsonl", "-"], env=environment, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        try:
            assert process.stdout is not None
            assert json.loads(process.stdout.readline())["captions"]
            server.stop()
            process.send_signal(signal.SIGTERM)
            out, err = process.communicate(timeout=60)
        finally:
            process.kill()
    assert (process.returncode, err.count(b"\n")) == (128 + signal.SIGTERM, 1), err
    assert all(json.loads(line)["captions"] for line in out.splitlines())
