"""Reading images and laying them on the backbone's input."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args
from zipfile import BadZipFile

import numpy as np
import pytest
import torch
from PIL import Image, features

from runtime import Captioner, Frame, ImageError, PatchcaptionError, Point, VideoError, draw_captions
from runtime.image import Fit, ImageSource, View, loading, open_image, prepare
from runtime.options import Channels
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


@pytest.mark.parametrize("wh", [(60_000, 2), (2, 60_000)])
def test_a_thin_image_is_not_resized_to_gigabytes(wh: tuple[int, int]) -> None:
    with pytest.raises(ImageError, match="image, resized for the crop: expected at most .* pixels, got "):
        prepare([Image.new("RGB", wh)], 224, Fit.CROP)
    assert prepare([Image.new("RGB", wh)], 28, Fit.STRETCH)[0].shape == (1, 28, 28, 3)


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
        bytearray(file.read_bytes()),
        memoryview(file.read_bytes()),
        io.BytesIO(file.read_bytes()),
        file.open("rb", buffering=0),
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


@pytest.mark.parametrize(
    ("pixels", "expected"),
    [
        (np.array([[0, 0.5, 1]], np.float32), [0, 128, 255]),
        (np.array([[0, 7, 255]], np.float32), [0, 7, 255]),  # whole numbers, as Pillow makes them of 8 bits
        (np.array([[0, 257, 0x8000, 0xFFFF]], np.uint16), [0, 1, 128, 255]),
        (np.array([[0, 128, 129, 0xFFFF]], np.int32), [0, 0, 1, 255]),
    ],
)
def test_deep_images_are_scaled_as_viewers_scale_them(
    tmp_path: Path, pixels: np.ndarray[Any, Any], expected: list[int]
) -> None:
    Image.fromarray(pixels).save(tmp_path / "deep.tif")
    np.testing.assert_array_equal(np.asarray(open_image(tmp_path / "deep.tif"))[0, :, 1], expected)


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (np.array([[0, 1.5]], np.float32), "deep.tif: expected floats in 0..1, got 0 to 1.5; scale them"),
        (np.array([[-0.5, 1]], np.float32), "expected floats in 0..1, got -0.5 to 1"),
        (np.array([[np.nan, 1]], np.float32), "expected floats in 0..1, got nan to nan"),
        (np.array([[0, 70000]], np.int32), "expected whole numbers of 16 bits, 0 to 65535, got 0 to 70000"),
        (np.array([[-1, 5]], np.int32), "got -1 to 5"),
    ],
)
def test_deep_images_that_nobody_can_scale_are_refused(
    tmp_path: Path, pixels: np.ndarray[Any, Any], message: str
) -> None:
    Image.fromarray(pixels).save(tmp_path / "deep.tif")
    with pytest.raises(ImageError, match=message):
        open_image(tmp_path / "deep.tif")


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


def test_an_image_is_turned_once_however_often_it_is_opened(tmp_path: Path) -> None:
    image = Image.new("RGB", (20, 10), "white")
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(tmp_path / "turned.jpg", exif=exif)
    assert open_image(open_image(open_image(tmp_path / "turned.jpg"))).size == (10, 20)


@pytest.mark.parametrize(
    "exif",
    [
        b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x05",
        b"Exif\0\0",
        b"Exif\0\0II*\0\xff\xff\xff\xff",
    ],
)
def test_damaged_exif_turns_nothing_and_is_no_matter(
    tmp_path: Path, exif: bytes, recwarn: pytest.WarningsRecorder
) -> None:
    Image.new("RGB", (20, 10)).save(tmp_path / "image.jpg", exif=exif)
    assert open_image(tmp_path / "image.jpg").size == (20, 10)
    assert not recwarn.list


@pytest.mark.parametrize(
    "data",
    [
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
        b"%PDF-1.4\n",
        b"SIMPLE  =                    T",
        b"\xd7\xcd\xc6\x9a" + bytes(40),  # WMF
    ],
)
def test_what_runs_a_program_or_reads_other_files_is_no_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: bytes
) -> None:
    def run(*_: object, **__: object) -> None:
        raise AssertionError("a program is run")

    monkeypatch.setattr(subprocess, "Popen", run)
    path = tmp_path / "photo.png"
    path.write_bytes(data)
    for source in (path, data, io.BytesIO(data)):
        with pytest.raises(ImageError, match="not an image that Pillow can read as one of AVIF, BMP, "):
            open_image(source)


def test_a_heic_photo_is_read_or_refused_with_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    head = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(40)
    (tmp_path / "photo.heic").write_bytes(head)
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(ImageError, match="photo.heic: a HEIC photo, .*: pip install pillow-heif, or save it as JPEG"):
        open_image(tmp_path / "photo.heic")


def test_heic_photos_are_read_by_pillow_heif() -> None:
    heif = pytest.importorskip("pillow_heif")
    buffer = io.BytesIO()
    heif.from_pillow(Image.new("RGB", (64, 48), "teal")).save(buffer)
    assert open_image(buffer.getvalue()).size == (64, 48)


def test_avif_images_are_read_or_refused_with_words() -> None:
    if features.check("avif"):
        buffer = io.BytesIO()
        Image.new("RGB", (64, 48), "teal").save(buffer, "AVIF")
        assert open_image(buffer.getvalue()).size == (64, 48)
    with pytest.raises(ImageError, match="AVIF needs Pillow 11.3|cannot be read as an image"):
        open_image(b"\0\0\0\x1cftypavif\0\0\0\0avifmif1" + bytes(40))


def test_pipes_and_devices_are_no_images(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    for path in (tmp_path / "pipe.jpg", "/dev/zero"):
        with pytest.raises(ImageError, match="expected a regular file, got a pipe or a device"):
            open_image(path)


def test_what_pillow_warns_of_reaches_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 5000)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        before = list(warnings.filters)
        with pytest.raises(ImageError, match="at most 5000 pixels, got 80 x 64|decompression bomb"):
            open_image(_png((80, 64)))
        assert list(warnings.filters) == before
    assert not seen


def test_channels_may_come_in_opencvs_order(demo: Captioner) -> None:
    rgb = np.zeros((48, 64, 3), np.uint8)
    rgb[:, :32, 0], rgb[:, 32:, 2] = 255, 128
    bgr = rgb[..., ::-1].copy()
    expected = demo.encode(rgb)
    for image in (bgr, torch.from_numpy(bgr).permute(2, 0, 1)):
        torch.testing.assert_close(demo.encode(image, channels="bgr").tokens, expected.tokens, rtol=0, atol=0)
    torch.testing.assert_close(demo.encode(rgb[..., 0], channels="bgr").tokens, demo.encode(rgb[..., 0]).tokens)
    assert demo.caption(bgr, [Point(9, 9)], channels="bgr") == demo.caption(rgb, [Point(9, 9)])
    (described,) = demo.stream(iter([bgr]), [Point(9, 9)], channels="bgr")
    np.testing.assert_array_equal(described.frame.image, rgb)
    assert described.captions == demo.caption(rgb, [Point(9, 9)])
    np.testing.assert_array_equal(draw_captions(bgr, [], channels="bgr"), rgb)
    calls: list[Callable[..., Any]] = [
        demo.encode,
        lambda image, **how: demo.caption(image, [], **how),
        lambda image, **how: demo.stream([image], [], **how),
        lambda image, **how: draw_captions(image, [], **how),
    ]
    for call in calls:
        with pytest.raises(PatchcaptionError, match='channels: expected "rgb" or "bgr", got \'BGR\''):
            call(rgb, channels="BGR")
    with pytest.raises(PatchcaptionError, match="its frames are decoded as RGB: leave out channels='bgr'"):
        demo.stream("clip.mp4", [], channels="bgr")


def test_grey_arrays_are_images_too() -> None:
    assert open_image(np.full((2, 3), 7, np.uint8)).getpixel((2, 1)) == (7, 7, 7)


def _png(size: tuple[int, int]) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size).save(buffer, "PNG")
    return buffer.getvalue()


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
        ({}, "got dict"),
        (
            torch.zeros(3, 4, 4, dtype=torch.uint8).to_sparse(),
            "expected a dense tensor with data, got a nested, sparse",
        ),
        (torch.zeros(3, 4, 4, dtype=torch.uint8, device="meta"), "expected a dense tensor with data"),
        (torch.nested.nested_tensor([torch.zeros(3, 4, 4)]), "expected a dense tensor with data"),
        (torch.zeros(3, 1, 1, dtype=torch.uint8).expand(3, 50_000, 50_000), "expected at most .* pixels, got 50000 x"),
        (np.broadcast_to(np.uint8(0), (50_000, 50_000)), "expected at most .* pixels, got 50000 x 50000"),
        (np.broadcast_to(np.uint8(0), (50_000, 50_000, 3)), "expected at most .* pixels, got 50000 x 50000"),
        (None, "got NoneType"),
    ],
)
def test_other_things_are_refused(source: object, message: str) -> None:
    for channels in get_args(Channels):
        with pytest.raises(ImageError, match=message):
            open_image(source, channels)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "error",
    [OSError(5, "Input/output error"), EOFError("ended early"), zlib.error("damaged"), BadZipFile("CRC"), KeyError()],
)
def test_whatever_a_file_object_raises_is_an_image_error(error: Exception) -> None:
    class Broken(io.RawIOBase):
        def read(self, _: int = -1, /) -> bytes:
            raise error

    with pytest.raises(ImageError, match="image file object: cannot be read: "):
        open_image(Broken())


def test_a_file_object_without_an_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class Endless(io.RawIOBase):
        def readable(self) -> bool:
            return True

        def readinto(self, buffer: Any, /) -> int:
            return len(buffer)

    class Reads:
        """A download, for example, which no class of Python's is a base of."""

        def read(self, size: int = -1) -> bytes:
            assert size >= 0, "all of it was asked for"
            return bytes(size)

    class ReadsAll:
        def read(self) -> bytes:
            return bytes(6 << 20)

    monkeypatch.setattr(loading, "_MAX_ENCODED_BYTES", 5 << 20)
    for file in (Endless(), io.BufferedReader(Endless()), Reads(), ReadsAll()):
        with pytest.raises(ImageError, match="image file object: expected at most 5242880 bytes"):
            open_image(file)


@pytest.mark.parametrize("takes_size", [True, False])
def test_a_file_object_needs_no_more_than_read(takes_size: bool) -> None:
    file = io.BytesIO(_png((20, 10)))

    def read(size: int) -> bytes:
        return file.read(min(size, 7))

    def read_all() -> bytes:
        return file.read()

    assert open_image(SimpleNamespace(read=read if takes_size else read_all)).size == (20, 10)


def test_images_of_a_folder_that_cannot_be_read_are_counted_and_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    (tmp_path / "a.png").write_bytes(_png((20, 10)))
    (tmp_path / "b.heic").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(40))
    (tmp_path / "c.AVIF").write_bytes(b"words")
    source = open_source(tmp_path)
    with pytest.warns(UserWarning, match="2 of its 3 images cannot be read: .*b.heic: a HEIC photo"):
        assert [frame.number for frame in source.frames()] == [0]
    assert source.decode_errors == 2
