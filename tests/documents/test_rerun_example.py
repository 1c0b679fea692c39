"""The Rerun viewer of a video's captions: what is in the recording is what the captioner says."""

from __future__ import annotations

import base64
import json
import re
import subprocess
import sys
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from runtime import Box, Captioner
from tests.conftest import ROOT, write_clip
from tests.documents.test_examples import run

pytestmark = pytest.mark.skipif(find_spec("rerun") is None, reason="needs rerun-sdk")

TRIANGLE, SQUARE, OUTSIDE = (276, 174, 507, 399), (90, 420, 321, 648), (9000, 9000, 9100, 9100)

MISTAKES = {
    "clip.mp4": "there is no display for the viewer: give --save OUT.rrd, or --connect URL",
    "clip.mp4 --save ./clip.mp4": "source and --save are one file",
    "clip.mp4 --box 1,2,3 --save out.rrd": "argument --box: invalid box value: '1,2,3'",
}

RUN_EACH = """
import runpy, sys
main = runpy.run_path(sys.argv[1])["main"]
for arguments in sys.argv[2:]:
    try:
        main(arguments.split())
    except SystemExit as end:
        print(end.code)
"""


@pytest.fixture
def clip(tmp_path: Path, sample_image: Image.Image) -> Path:
    mirrored = sample_image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return write_clip(tmp_path / "clip.mp4", [sample_image, sample_image, mirrored])


def recorded(rrd: Path) -> dict[str, dict[str, dict[str, Any]]]:
    """Return what a recording holds: for each path and frame the components by their names."""
    command = [sys.executable, str(ROOT / "tests" / "documents" / "rerun_reading.py"), str(rrd)]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


@pytest.mark.slow
def test_the_recording_has_the_captions_of_every_frame(
    demo: Captioner, demo_bundle: Path, clip: Path, tmp_path: Path
) -> None:
    boxes = [word for box in (TRIANGLE, SQUARE, OUTSIDE) for word in ("--box", ",".join(map(str, box)))]
    run("rerun_viewer.py", clip, "--bundle", demo_bundle, "--save", tmp_path / "out.rrd", *boxes)
    held = recorded(tmp_path / "out.rrd")
    frames = list(demo.stream(clip, [Box(*TRIANGLE), Box(*SQUARE)]))
    assert frames[0].captions[0].text == "a large striped red triangle"
    assert set(held) == {"/video", "/video/regions", "/captions/0", "/captions/1", "/captions/2", "/latency_ms"}
    for path in ("/video", "/video/regions", "/latency_ms"):
        assert list(held[path]) == ["0", "1", "2"]
        assert [row["seconds"] for row in held[path].values()] == [0, 100_000_000, 200_000_000]
    for described in frames:
        number = str(described.frame.number)
        regions = held["/video/regions"][number]
        assert regions["Boxes2D:labels"] == [caption.text for caption in described.captions]
        middles, halves = np.array(regions["Boxes2D:centers"]), np.array(regions["Boxes2D:half_sizes"])
        np.testing.assert_array_equal(np.hstack([middles - halves, middles + halves]), [TRIANGLE, SQUARE])
        picture = Image.open(BytesIO(base64.b64decode(held["/video"][number]["EncodedImage:blob"])))
        image = np.asarray(described.frame.image).astype(int)
        assert np.abs(np.asarray(picture.convert("RGB")) - image).mean() < 2, "the frame, as JPEG"
        assert held["/latency_ms"][number]["Scalars:scalars"][0] > 0
        for index, caption in enumerate(described.captions):
            said = held[f"/captions/{index}"].get(number)
            assert (said is None) == caption.reused
            if said is not None:
                assert (said["TextLog:text"], said["TextLog:level"]) == ([caption.text], ["INFO"])
        missing = held["/captions/2"][number]
        assert "outside the image of 672 x 672 pixels" in missing["TextLog:text"][0]
        assert missing["TextLog:level"] == ["WARN"]


def test_mistakes_are_one_line(tmp_path: Path) -> None:
    command = [sys.executable, "-c", RUN_EACH, str(ROOT / "examples" / "rerun_viewer.py"), *MISTAKES]
    environment = {"PYTHONPATH": ":".join(path for path in sys.path if path)}
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path, env=environment)
    assert done.stdout.split() == ["2", "2", "2"]
    assert re.findall(r"error: (.*)", done.stderr) == list(MISTAKES.values())
