"""The examples, run on small input; ROS's messages by their fields, without ROS."""

from __future__ import annotations

import json
import runpy
import shutil
import subprocess
import sys
import threading
from array import array
from io import BytesIO
from pathlib import Path
from threading import Semaphore
from types import SimpleNamespace
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from runtime import Box, Caption, Captioner, Frame
from runtime.regions import from_dict
from tests.conftest import ROOT, write_clip
from tests.video.test_stream import frame_image

sys.path.insert(0, str(ROOT / "examples" / "ros2"))
from patchcaption_ros import describing, images, messages, node  # type: ignore[import-not-found]

ROS = ROOT / "examples" / "ros2"
IS_ROS_IMPORTED = "rclpy" in sys.modules
"""Once the node's module is."""


def run(name: str, *arguments: object) -> str:
    command = [sys.executable, str(ROOT / "examples" / name), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_overlay_has_every_frame(demo_bundle: Path, tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.mp4", [frame_image(number) for number in range(3)])
    run("video_overlay.py", clip, tmp_path / "out.mp4", "--bundle", demo_bundle, "--box", "10,10,90,80")
    with av.open(str(tmp_path / "out.mp4")) as container:
        assert container.streams.video[0].average_rate == 10, "the source's"
        assert [frame.time for frame in container.decode(video=0)] == pytest.approx([0, 0.1, 0.2], abs=1e-3)


def test_what_the_detector_finds_is_described(demo_bundle: Path, tmp_path: Path, sample_image: Image.Image) -> None:
    sample_image.save(tmp_path / "a.png")
    lines = run("detector_captions.py", tmp_path, "--bundle", demo_bundle).splitlines()
    assert lines
    assert all(line.startswith("frame 0: Box(") for line in lines)


def test_the_detector_finds_what_is_unlike_the_border() -> None:
    from importlib.util import module_from_spec, spec_from_file_location

    spec = spec_from_file_location("detector_captions", ROOT / "examples" / "detector_captions.py")
    assert spec is not None
    assert spec.loader is not None
    example = module_from_spec(spec)
    sys.modules["detector_captions"] = example
    spec.loader.exec_module(example)
    image = np.full((64, 96, 3), 200, np.uint8)
    image[8:24, 16:40], image[40:56, 64:80] = 10, (250, 0, 0)
    assert example.detect(Frame(0, None, image)).xyxy.tolist() == [[16, 8, 40, 24], [64, 40, 80, 56]]
    assert example.detect(Frame(0, None, np.zeros((64, 64, 3), np.uint8))).xyxy.shape == (0, 4)


def image_message(pixels: np.ndarray[Any, Any], encoding: str, padding: int = 0) -> SimpleNamespace:
    rows = np.pad(pixels.reshape(len(pixels), -1), ((0, 0), (0, padding)))
    stamp = SimpleNamespace(sec=12, nanosec=500_000_000)
    return SimpleNamespace(
        height=pixels.shape[0],
        width=pixels.shape[1],
        step=rows.shape[1],
        encoding=encoding,
        data=array("B", rows.tobytes()),
        is_bigendian=0,
        header=SimpleNamespace(stamp=stamp),
    )


def test_the_best_class_of_a_detection_goes_with_its_caption() -> None:
    found = SimpleNamespace(detections=[detection(5, 4, 6, 4), detection(5, 4, 6, 4), detection(5, 4, 6, 4)])
    for one, scores in zip(found.detections, ([0.25, 0.75], [], [float("nan")]), strict=True):
        names = [SimpleNamespace(class_id=f"class {number}", score=score) for number, score in enumerate(scores)]
        one.results = [SimpleNamespace(hypothesis=name) for name in names]
    text = messages.captions_as_text(dict.fromkeys(range(3), Caption("words", 1.0, ())), found, 0.0)
    classes = [(one.get("class"), one.get("confidence")) for one in json.loads(text)["captions"]]
    assert classes == [("class 1", 0.75), (None, None), (None, None)]


def detection(x: float, y: float, width: float, height: float, id: str = "") -> SimpleNamespace:
    centre = SimpleNamespace(position=SimpleNamespace(x=x, y=y), theta=0.0)
    return SimpleNamespace(id=id, bbox=SimpleNamespace(center=centre, size_x=width, size_y=height))


PIXELS = np.random.default_rng(0).integers(0, 256, (4, 6, 3), np.uint8)
WITH_ALPHA = np.concatenate([PIXELS, np.full((4, 6, 1), 9, np.uint8)], axis=2)


@pytest.mark.parametrize("padding", [0, 5])
@pytest.mark.parametrize(
    ("encoding", "sent"),
    [
        ("rgb8", PIXELS),
        ("bgr8", PIXELS[..., ::-1]),
        ("8UC3", PIXELS[..., ::-1]),
        ("rgba8", WITH_ALPHA),
        ("bgra8", WITH_ALPHA[..., [2, 1, 0, 3]]),
        ("8UC4", WITH_ALPHA[..., [2, 1, 0, 3]]),
    ],
)
def test_images_of_every_encoding_are_rgb(encoding: str, sent: np.ndarray[Any, Any], padding: int) -> None:
    np.testing.assert_array_equal(images.image_of(image_message(sent, encoding, padding)), PIXELS)


@pytest.mark.parametrize("padding", [0, 5])
def test_grey_images_are_grey_of_8_bits(padding: int) -> None:
    grey = PIXELS[..., 0]
    for encoding in ("mono8", "8UC1"):
        np.testing.assert_array_equal(images.image_of(image_message(grey, encoding, padding)), grey)
    deep = grey.astype("<u2") << 8 | 255
    for dtype, is_bigendian in (("<u2", 0), (">u2", 1)):
        message = image_message(deep.astype(dtype).view(np.uint8), "mono16", padding)
        message.width, message.is_bigendian = 6, is_bigendian
        np.testing.assert_array_equal(images.image_of(message), grey)


@pytest.mark.parametrize(("encoding", "luma"), [("uyvy", 1), ("yuv422", 1), ("yuyv", 0), ("yuv422_yuy2", 0)])
def test_images_that_share_colour_in_pairs_are_rgb(encoding: str, luma: int) -> None:
    """Pairs of grey, white, red and blue, by the table of BT.601."""
    yuv = [(126, 128, 128), (235, 128, 128), (81, 90, 240), (41, 240, 110)]
    pairs = np.zeros((1, len(yuv), 2, 2), np.uint8)
    for pair, (y, u, v) in enumerate(yuv):
        pairs[0, pair, :, luma], pairs[0, pair, :, 1 - luma] = y, (u, v)
    message = image_message(pairs.reshape(1, 2 * len(yuv), 2), encoding)
    expected = [(128, 128, 128), (255, 255, 255), (254, 0, 0), (0, 0, 255)]
    got = images.image_of(message)
    assert got.shape == (1, 8, 3)
    assert np.abs(got[0].astype(int) - np.repeat(expected, 2, axis=0)).max() <= 2
    odd = image_message(pairs.reshape(1, -1, 2)[:, :7], encoding)
    with pytest.raises(ValueError, match="image of width 7: pixels that share their colour come in pairs"):
        images.image_of(odd)


def test_compressed_images_are_rgb() -> None:
    buffer = BytesIO()
    Image.fromarray(PIXELS).save(buffer, "png")
    message = SimpleNamespace(format="rgb8; png compressed bgr8", data=array("B", buffer.getvalue()))
    np.testing.assert_array_equal(images.image_of(message), PIXELS)
    message.data = message.data[:20]
    with pytest.raises(ValueError, match="image bytes: "):
        images.image_of(message)


def test_images_that_are_not_what_they_say_are_refused() -> None:
    message = image_message(np.zeros((4, 6, 3), np.uint8), "rgb8")
    message.data = message.data[:-1]
    with pytest.raises(ValueError, match="image of 6 x 4: expected 72 bytes, got 71"):
        images.image_of(message)
    message.encoding = "32FC1"
    with pytest.raises(ValueError, match="encoding '32FC1': expected one of rgb8"):
        images.image_of(message)


def test_detections_are_boxes_on_the_image() -> None:
    found = SimpleNamespace(detections=[detection(5, 4, 6, 4), detection(90, 90, 4, 4), detection(0, 0, 8, 8)])
    assert messages.regions_of(found, (12, 10)) == {0: Box(2, 2, 8, 6), 2: Box(0, 0, 4, 4)}


def test_detections_that_are_no_boxes_are_left_out() -> None:
    nan = float("nan")
    found = SimpleNamespace(detections=[detection(5, 4, -6, 4), detection(nan, 4, 6, 4), detection(5, 4, 6, 0)])
    infinite = float("inf")
    found.detections += [detection(5, 4, infinite, infinite), detection(5, 4, nan, nan), detection(infinite, 4, 6, 4)]
    assert messages.regions_of(found, (12, 10)) == {}


def test_a_callback_says_what_the_captioner_says(demo: Captioner, sample_image: Image.Image) -> None:
    pixels = np.asarray(sample_image)
    found = SimpleNamespace(detections=[detection(-9, -9, 2, 2), detection(391.5, 286.5, 231, 225, "triangle")])
    said = json.loads(describing.describe(demo, image_message(pixels, "rgb8"), found))
    assert said["seconds"] == 12.5
    (caption,) = said["captions"]
    assert (caption["detection"], caption["id"]) == (1, "triangle")
    assert caption["text"] == demo.caption(sample_image, [Box(276, 174, 507, 399)])[0].text
    assert from_dict(caption["region"]) == Box(276, 174, 507, 399)


class SlowCaptioner:
    """Describes an image once it is let."""

    def __init__(self) -> None:
        self.begun, self.go_on = Semaphore(0), Semaphore(0)
        self.seconds: list[float] = []

    def describe(self, _: Any, image: Any, __: Any) -> str:
        self.seconds.append(image.header.stamp.sec)
        self.begun.release()
        self.go_on.acquire()
        if image.header.stamp.sec == 2:
            raise ValueError("image 2 is broken")
        return f"image {image.header.stamp.sec}"


def test_of_the_images_that_arrive_meanwhile_the_newest_is_described(monkeypatch: pytest.MonkeyPatch) -> None:
    captioner, said, errors = SlowCaptioner(), list[str](), list[str]()
    monkeypatch.setattr(describing, "describe", captioner.describe)
    describer = describing.Describer(captioner, said.append, errors.append)

    def submit(second: int) -> None:
        describer.submit(SimpleNamespace(header=SimpleNamespace(stamp=SimpleNamespace(sec=second))), None)

    for number in range(3):
        submit(number)
        if number == 0:
            captioner.begun.acquire()
    captioner.go_on.release()
    captioner.begun.acquire()
    submit(3)
    captioner.go_on.release()
    captioner.begun.acquire()
    captioner.go_on.release()
    describer.close()
    assert captioner.seconds == [0, 2, 3]
    assert (said, errors) == (["image 0", "image 3"], ["image 2 is broken"])


def test_ros_finds_the_executable_and_the_launch_file(tmp_path: Path) -> None:
    """Installed as colcon does it: executables in lib/PACKAGE, the launch file in share/PACKAGE/launch."""
    package = tmp_path / "package"
    shutil.copytree(ROS, package, ignore=shutil.ignore_patterns("__pycache__"))
    command = [sys.executable, "setup.py", "-q", "install", "--root", str(tmp_path / "root"), "--prefix", "/ws"]
    done = subprocess.run(
        [*command, "--single-version-externally-managed"], capture_output=True, text=True, check=False, cwd=package
    )
    assert done.returncode == 0, done.stderr
    installed = tmp_path / "root" / "ws"
    assert (installed / "lib" / "patchcaption_ros" / "captions").is_file()
    for name in ("launch/captions.launch.py", "package.xml"):
        assert (installed / "share" / "patchcaption_ros" / name).is_file()


class NodeStandIn:
    """What the node uses of rclpy's Node."""

    parameters: dict[str, object]
    log: list[str]

    def __init__(self, name: str) -> None:
        self.log.append(f"{name} starts")

    def declare_parameter(self, name: str, default: object) -> SimpleNamespace:
        return SimpleNamespace(value=self.parameters.get(name, default))

    def create_publisher(self, *_: object) -> SimpleNamespace:
        return SimpleNamespace(publish=lambda _: None)

    def get_logger(self) -> SimpleNamespace:
        return SimpleNamespace(info=self.log.append, error=self.log.append)

    def destroy_node(self) -> None:
        self.log.append("destroyed")


@pytest.mark.parametrize("compressed", [False, True])
def test_ctrl_c_ends_the_node_without_a_traceback(
    monkeypatch: pytest.MonkeyPatch, demo_bundle: Path, compressed: bool
) -> None:
    class ExternalShutdownError(Exception): ...

    log, subscribed = list[str](), dict[str, str]()
    monkeypatch.setattr(NodeStandIn, "log", log, raising=False)
    parameters = {"bundle": str(demo_bundle), "backend": "cpu", "compressed": compressed}
    monkeypatch.setattr(NodeStandIn, "parameters", parameters, raising=False)
    endings: list[type[BaseException]] = [KeyboardInterrupt, ExternalShutdownError]

    def spin(_: NodeStandIn) -> None:
        raise endings.pop()

    def synchronize(*_: object) -> SimpleNamespace:
        return SimpleNamespace(registerCallback=lambda callback: log.append(callback.__name__))

    def subscribe(_: object, kind: str, topic: str, qos_profile: str) -> None:
        assert qos_profile == "sensors"
        subscribed[topic] = kind

    stand_ins: dict[str, dict[str, Any]] = {
        "message_filters": {"Subscriber": subscribe, "ApproximateTimeSynchronizer": synchronize},
        "rclpy": {
            "ok": lambda: True,
            "init": lambda: None,
            "spin": spin,
            "try_shutdown": lambda: log.append("shut down"),
        },
        "rclpy.executors": {"ExternalShutdownException": ExternalShutdownError},
        "rclpy.node": {"Node": NodeStandIn},
        "rclpy.qos": {"qos_profile_sensor_data": "sensors"},
        "sensor_msgs.msg": {"Image": "Image", "CompressedImage": "CompressedImage"},
        "std_msgs.msg": {"String": SimpleNamespace},
        "vision_msgs.msg": {"Detection2DArray": "Detection2DArray"},
    }
    for module, names in stand_ins.items():
        monkeypatch.setitem(sys.modules, module, SimpleNamespace(**names))
    before = set(threading.enumerate())
    for _ in range(2):
        log.clear()
        node.main()
        assert [log[0], log[1], *log[-2:]] == ["patchcaption starts", "submit", "destroyed", "shut down"]
    assert subscribed == {"image": "CompressedImage" if compressed else "Image", "detections": "Detection2DArray"}
    assert set(threading.enumerate()) == before


def test_the_launch_file_starts_the_node_with_what_it_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    def stand_in(module: str, *names: str) -> None:
        stands = {name: lambda *values, _name=name, **named: (_name, values, named) for name in names}
        monkeypatch.setitem(sys.modules, module, SimpleNamespace(**stands))

    stand_in("launch", "LaunchDescription")
    stand_in("launch.actions", "DeclareLaunchArgument")
    stand_in("launch.substitutions", "LaunchConfiguration")
    stand_in("launch_ros", "actions")
    stand_in("launch_ros.actions", "Node")
    launched = runpy.run_path(str(ROS / "launch" / "captions.launch.py"))["generate_launch_description"]()
    *arguments, (_, _, node) = launched[1][0]
    declared = {values[0] for _, values, _ in arguments}
    assert (node["package"], node["executable"]) == ("patchcaption_ros", "captions")
    assert set(node["parameters"][0]) | {name for name, _ in node["remappings"]} == declared
    source = (ROS / "patchcaption_ros" / "node.py").read_text()
    for name in node["parameters"][0]:
        assert f'declare_parameter("{name}"' in source
    for name, _ in node["remappings"]:
        assert f'"{name}"' in source


def test_ros_is_imported_only_when_the_node_runs() -> None:
    assert not IS_ROS_IMPORTED
