"""An RTSP server on this machine, a process of its own that can be killed, stopped and started again.

Run as a program it is that process, by Debian's Python, which has GStreamer's bindings; `.ci/install-rtsp-server` has
what it needs.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from types import TracebackType

SYSTEM_PYTHON = "/usr/bin/python3"
CAMERAS = {
    "h264": "x264enc tune=zerolatency speed-preset=ultrafast key-int-max=5 ! rtph264pay name=pay0 config-interval=1",
    "mjpeg": "video/x-raw,format=I420 ! jpegenc ! rtpjpegpay name=pay0",
}
"""Encoders by the paths that they are served at."""
_PICTURES = "videotestsrc is-live=true pattern=ball ! video/x-raw,width=160,height=120,framerate=25/1 ! videoconvert"
_PROBE = """
import gi
gi.require_version("Gst", "1.0")
gi.require_version("GstRtspServer", "1.0")
from gi.repository import Gst, GstRtspServer
Gst.init(None)
needed = ("jpegenc", "rtph264pay", "rtpjpegpay", "videoconvert", "videotestsrc", "x264enc")
print([name for name in needed if not Gst.ElementFactory.find(name)])
"""


class RtspServer:
    """The server: 25 frames of 160 x 120 pixels in a second at ``rtsp://127.0.0.1:PORT/h264`` and ``/mjpeg``."""

    def __init__(self) -> None:
        self._port = 0
        self.start()

    def url(self, camera: str, transport: str = "tcp") -> str:
        """Return the address of a camera, which is read over TCP or UDP."""
        return f"rtsp://127.0.0.1:{self._port}/{camera}" + ("?udp" if transport == "udp" else "")

    def start(self) -> None:
        """Start it, at the port that it had before."""
        command = [SYSTEM_PYTHON, __file__, str(self._port)]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={"PATH": os.defpath})
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self.kill()
            raise RuntimeError("the RTSP server does not start")
        self._port = int(line)

    def kill(self) -> None:
        """End it as a loss of power does."""
        self._process.kill()
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()

    def stop(self) -> None:
        """Let it be silent, with its connections open."""
        self._process.send_signal(signal.SIGSTOP)

    def __enter__(self) -> RtspServer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()


def missing() -> str | None:
    """Return what the server lacks on this machine; None if nothing."""
    try:
        found = subprocess.run([SYSTEM_PYTHON, "-c", _PROBE], capture_output=True, text=True, timeout=60, check=False)
    except OSError as error:
        return str(error)
    if found.returncode:
        return found.stderr.strip().splitlines()[-1]
    return None if found.stdout.strip() == "[]" else f"no elements {found.stdout.strip()}"


def _serve(port: str) -> None:
    import gi  # type: ignore[import-not-found, unused-ignore]

    gi.require_version("Gst", "1.0")
    gi.require_version("GstRtspServer", "1.0")
    from gi.repository import GLib, Gst, GstRtspServer  # type: ignore[import-not-found, unused-ignore]

    Gst.init(None)
    server = GstRtspServer.RTSPServer()
    server.set_address("127.0.0.1")
    server.set_service(port)
    for name, encoder in CAMERAS.items():
        factory = GstRtspServer.RTSPMediaFactory()
        factory.set_launch(f"( {_PICTURES} ! {encoder} )")
        factory.set_shared(True)
        server.get_mount_points().add_factory(f"/{name}", factory)
    if server.attach(None):
        print(server.get_bound_port(), flush=True)
        GLib.MainLoop().run()


if __name__ == "__main__":
    _serve(sys.argv[1])
