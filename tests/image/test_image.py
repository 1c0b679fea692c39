"""Reading images and laying them on the backbone's input."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from runtime import Frame, ImageError, VideoError
from runtime.image import Fit, ImageSource, View, open_image, prepare
from runtime.video.sources import open_source


@pytest.mark.parametrize(
    ("image_wh", "resized_wh", "offset_xy"),
    [
        ((640, 480), (298, 224), (37, 0)),  # int(224 * 640 / 480) = 298; (298 - 224) / 2 = 37
        ((640, 378), (379, 224), (78, 0)),  # 379.26 is cut; 77.5 is rounded half to even
        ((480, 640), (224, 298), (0, 37)),
        ((640, 427), (335, 224), (56, 0)),  # 335.7 is cut; 55.5 is rounded half to even
        ((50, 50), (224, 224), (0, 0)),
    ],
)
def test_cropping_follows_the_published_rule(
    image_wh: tuple[int, int], resized_wh: tuple[int, int], offset_xy: tuple[int, int]
) -> None:
    assert View.of(image_wh, 224, Fit.CROP) == View(image_wh, resized_wh, offset_xy, 224, Fit.CROP)


def test_points_follow_the_pixels() -> None:
    points = np.array([[0.0, 0.0], [640.0, 480.0], [320.0, 240.0]])
    np.testing.assert_allclose(View.of((640, 480), 224, Fit.STRETCH).to_input(points), [[0, 0], [224, 224], [112, 112]])
    np.testing.assert_allclose(View.of((640, 480), 224, Fit.CROP).to_input(points), [[-37, 0], [261, 224], [112, 112]])


@pytest.mark.parametrize("fit", list(Fit))
def test_images_of_any_size_fill_the_input(fit: Fit) -> None:
    images = [Image.new("RGB", size, "teal") for size in ((1, 1), (640, 480), (3, 500), (224, 224))]
    pixels, views = prepare(images, 28, fit)
    assert pixels.shape == (4, 28, 28, 3)
    assert (pixels == torch.tensor([0, 128, 128])).all()  # no black edges
    assert [view.image_wh for view in views] == [image.size for image in images]


def test_resizing_is_pillows_antialiased_bicubic() -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 90, 3), np.uint8))
    pixels, _ = prepare([noise], 28, Fit.CROP)
    expected = noise.resize((42, 28), Image.Resampling.BICUBIC).crop((7, 0, 35, 28))
    np.testing.assert_array_equal(pixels[0], np.asarray(expected))


class Unseekable:
    """A file object like a network response: it can be read once, and has no other method."""

    def __init__(self, contents: bytes) -> None:
        self._contents = contents

    def read(self) -> bytes:
        contents, self._contents = self._contents, b""
        return contents


def test_every_form_of_the_same_image_gives_the_same_pixels(tmp_path: Path) -> None:
    array = np.random.default_rng(0).integers(0, 256, (9, 12, 3), np.uint8)
    file = tmp_path / "image.png"
    Image.fromarray(array).save(file)
    strided = np.zeros((9, 24, 3), np.uint8)[:, ::2]
    strided[...] = array
    forms: list[ImageSource] = [
        file,
        str(file),
        file.read_bytes(),
        io.BytesIO(file.read_bytes()),
        Unseekable(file.read_bytes()),
        Image.fromarray(array),
        array,
        strided,
        array[::-1][::-1],
        torch.from_numpy(array).permute(2, 0, 1),
    ]
    for form in forms:
        np.testing.assert_array_equal(np.asarray(open_image(form)), array)


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "LA", "CMYK", "1", "I;16", "I", "F"])
def test_every_mode_becomes_rgb(mode: str) -> None:
    image = Image.new("L", (4, 3), 255).convert("RGB" if mode in ("CMYK", "RGBA", "P") else "L")
    image = Image.new("I;16", (4, 3), 0xFFFF) if mode == "I;16" else image.convert(mode)
    if mode == "I":
        image = Image.new("I", (4, 3), 0xFFFF)
    opened = open_image(image)
    assert opened.mode == "RGB"
    assert opened.getpixel((0, 0)) == (255, 255, 255)


def test_sixteen_bits_are_scaled_not_clipped() -> None:
    assert open_image(Image.new("I;16", (1, 1), 0x8000)).getpixel((0, 0)) == (128, 128, 128)


def test_what_is_transparent_shows_white() -> None:
    assert open_image(Image.new("RGBA", (1, 1), (0, 0, 0, 0))).getpixel((0, 0)) == (255, 255, 255)


def test_a_rotated_photograph_is_set_upright(tmp_path: Path) -> None:
    image = Image.new("RGB", (20, 10), "white")
    exif = image.getexif()
    exif[0x0112] = 6  # taken with the camera on its side
    image.save(tmp_path / "turned.jpg", exif=exif)
    assert open_image(tmp_path / "turned.jpg").size == (10, 20)


def test_grey_arrays_are_images_too() -> None:
    assert open_image(np.full((2, 3), 7, np.uint8)).getpixel((2, 1)) == (7, 7, 7)


def _jpeg() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)).save(buffer, "JPEG")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        (None, "no such file"),
        (b"", "not an image that Pillow can read"),
        (b"hello", "not an image that Pillow can read"),
        (_jpeg()[:900], "cannot be read as an image: .*truncated"),
        (b"\x89PNG\r\n\x1a\n" + b"\0" * 40, "not an image|cannot be read"),
    ],
)
def test_files_that_are_no_images_are_refused_by_name(tmp_path: Path, contents: bytes | None, message: str) -> None:
    path = tmp_path / "x.jpg"
    if contents is not None:
        path.write_bytes(contents)
    with pytest.raises(ImageError, match=f"x.jpg: .*({message})"):
        open_image(path)


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        (b"", "not an image that Pillow can read"),
        (b"scene.jpg", "not an image that Pillow can read"),
        (_jpeg()[:900], "cannot be read as an image: .*truncated"),
    ],
)
def test_bytes_and_file_objects_that_are_no_images_are_refused_as_such(contents: bytes, message: str) -> None:
    with pytest.raises(ImageError, match=f"^image bytes: {message}"):
        open_image(contents)
    with pytest.raises(ImageError, match=f"^image file object: {message}"):
        open_image(io.BytesIO(contents))


def test_file_objects_are_read_from_where_they_are(tmp_path: Path) -> None:
    path = tmp_path / "two.bin"
    path.write_bytes(b"header" + _jpeg())
    with path.open("rb") as file:
        file.seek(6)
        assert open_image(file).size == (64, 64)
        with pytest.raises(ImageError, match="image file object: not an image that Pillow can read"):
            open_image(file)
    with pytest.raises(ImageError, match="image file object: cannot be read: .*closed file"):
        open_image(file)


def test_file_objects_of_text_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "image.jpg"
    path.write_text("words")
    with path.open() as file, pytest.raises(ImageError, match="expected bytes, got str; open files in binary mode"):
        open_image(file)  # type: ignore[arg-type]


def test_bytes_are_bombs_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(ImageError, match="^image bytes: Image size .* exceeds limit"):
        open_image(_jpeg())


def test_bytes_are_an_image_and_never_a_stream_of_frames() -> None:
    with pytest.raises(VideoError, match="source: expected a file, a folder, .* got bytes"):
        open_source(_jpeg())  # type: ignore[arg-type]
    frames = list(open_source([_jpeg(), Frame(7, None, _jpeg())]).frames())
    assert [(frame.number, open_image(frame.image).size) for frame in frames] == [(0, (64, 64)), (7, (64, 64))]


def test_a_folder_is_no_image(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="cannot be read as an image"):
        open_image(tmp_path)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (np.zeros((4, 4, 3), np.float32), "expected dtype uint8 .* got float32"),
        (np.zeros((4, 4, 4), np.uint8), r"expected shape \(H, W, 3\) .* got \(4, 4, 4\)"),
        (np.zeros((0, 4, 3), np.uint8), "at least one pixel"),
        (np.zeros(4, np.uint8), "expected shape"),
        (torch.zeros(4, 4, 3, dtype=torch.uint8), r"expected shape \(3, H, W\), got \(4, 4, 3\)"),
        (torch.zeros(3, 4, 4), "expected dtype uint8"),
        (7, "expected a path, bytes, binary file object, PIL image, numpy array or torch tensor, got int"),
        (bytearray(3), "got bytearray"),
        (None, "got NoneType"),
    ],
)
def test_other_things_are_refused(source: object, message: str) -> None:
    with pytest.raises(ImageError, match=message):
        open_image(source)  # type: ignore[arg-type]
