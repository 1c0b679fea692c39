"""The examples, run on small input; ROS's messages by their fields, without ROS."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from runtime import Box, Captioner, Frame
from runtime.regions import from_dict
from tests.conftest import ROOT, write_clip
from tests.video.test_stream import frame_image

sys.path.insert(0, str(ROOT / "examples" / "ros2"))
from patchcaption_ros import messages, node  # type: ignore[import-not-found]


def run(name: str, *arguments: object) -> str:
    command = [sys.executable, str(ROOT / "examples" / name), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_overlay_has_every_frame(demo_bundle: Path, tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.mp4", [frame_image(number) for number in range(3)])
    run("video_overlay.py", clip, tmp_path / "out.mp4", "--bundle", demo_bundle, "--box", "10,10,90,80")
    with av.open(str(tmp_path / "out.mp4")) as container:
        assert len(list(container.decode(video=0))) == 3


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
        data=list(rows.tobytes()),
        header=SimpleNamespace(stamp=stamp),
    )


def detection(x: float, y: float, width: float, height: float, id: str = "") -> SimpleNamespace:
    centre = SimpleNamespace(position=SimpleNamespace(x=x, y=y), theta=0.0)
    return SimpleNamespace(id=id, bbox=SimpleNamespace(center=centre, size_x=width, size_y=height))


@pytest.mark.parametrize("padding", [0, 5])
def test_images_of_every_encoding_are_rgb(padding: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (4, 6, 3), np.uint8)
    alpha = np.concatenate([pixels, np.full((4, 6, 1), 9, np.uint8)], axis=2)
    for encoding, sent in (
        ("rgb8", pixels),
        ("bgr8", pixels[..., ::-1]),
        ("rgba8", alpha),
        ("bgra8", alpha[..., [2, 1, 0, 3]]),
    ):
        np.testing.assert_array_equal(messages.image_of(image_message(sent, encoding, padding)), pixels)
    np.testing.assert_array_equal(messages.image_of(image_message(pixels[..., 0], "mono8", padding)), pixels[..., 0])


def test_images_that_are_not_what_they_say_are_refused() -> None:
    message = image_message(np.zeros((4, 6, 3), np.uint8), "rgb8")
    message.data = message.data[:-1]
    with pytest.raises(ValueError, match="image of 6 x 4: expected 72 bytes, got 71"):
        messages.image_of(message)
    message.encoding = "32FC1"
    with pytest.raises(ValueError, match="encoding '32FC1': expected one of rgb8"):
        messages.image_of(message)


def test_detections_are_boxes_on_the_image() -> None:
    found = SimpleNamespace(detections=[detection(5, 4, 6, 4), detection(90, 90, 4, 4), detection(0, 0, 8, 8)])
    assert messages.regions_of(found, (12, 10)) == {0: Box(2, 2, 8, 6), 2: Box(0, 0, 4, 4)}


def test_detections_that_are_no_boxes_are_left_out() -> None:
    nan = float("nan")
    found = SimpleNamespace(detections=[detection(5, 4, -6, 4), detection(nan, 4, 6, 4), detection(5, 4, 6, 0)])
    assert messages.regions_of(found, (12, 10)) == {}


def test_a_callback_says_what_the_captioner_says(demo: Captioner, sample_image: Image.Image) -> None:
    pixels = np.asarray(sample_image)
    found = SimpleNamespace(detections=[detection(-9, -9, 2, 2), detection(391.5, 286.5, 231, 225, "triangle")])
    said = json.loads(node.describe(demo, image_message(pixels, "rgb8"), found))
    assert said["seconds"] == 12.5
    (caption,) = said["captions"]
    assert (caption["detection"], caption["id"]) == (1, "triangle")
    assert caption["text"] == demo.caption(sample_image, [Box(276, 174, 507, 399)])[0].text
    assert from_dict(caption["region"]) == Box(276, 174, 507, 399)


def test_ros_is_imported_only_when_the_node_runs() -> None:
    code = (
        "import sys; sys.path.insert(0, 'examples/ros2'); import patchcaption_ros.node; print('rclpy' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "False"
