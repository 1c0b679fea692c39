"""Bad input, by mistake or on purpose: each has its exact error or its exact result. One table."""

from __future__ import annotations

import contextlib
import json
import re
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image

from runtime import (
    AttentionHead,
    Box,
    BoxSet,
    BundleError,
    Caption,
    Captioner,
    Crop,
    FeatureMap,
    ImageError,
    Mask,
    Patch,
    Point,
    Polygon,
    RegionError,
    Register,
    Trace,
    WholeImage,
    draw_captions,
)
from runtime.image import open_image

NAN, INF = float("nan"), float("inf")
Case = tuple[str, Callable[[Path], Any], "type[Exception] | tuple[int, int]", str]


def image_file(image: Image.Image, name: str, **options: Any) -> Callable[[Path], Path]:
    def save(folder: Path) -> Path:
        image.save(folder / name, **options)
        return folder / name

    return save


def file_of(data: bytes, name: str = "image.png") -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        (folder / name).write_bytes(data)
        return folder / name

    return write


def truncated_image(name: str, share: float) -> Callable[[Path], Path]:
    def save(folder: Path) -> Path:
        noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
        Image.fromarray(noise).save(folder / name)
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[: int(len(data) * share)])
        return folder / name

    return save


def bomb(width: int, height: int) -> bytes:
    """Return a PNG of a few bytes whose header claims very many pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def animated() -> Callable[[Path], Path]:
    frames = [Image.new("RGB", (20, 10), colour) for colour in ("red", "blue")]
    return image_file(frames[0], "image.gif", save_all=True, append_images=frames[1:])


def with_exif(orientation: int) -> Callable[[Path], Path]:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return image_file(Image.new("RGB", (20, 10)), "image.jpg", exif=exif)


IMAGES: list[Case] = [
    ("truncated PNG", truncated_image("image.png", 0.5), ImageError, "image.png: cannot be read as an image: "),
    (
        "truncated JPEG",
        truncated_image("image.jpg", 0.5),
        ImageError,
        "image.jpg: cannot be read as an image: .*truncated",
    ),
    ("truncated WebP", truncated_image("image.webp", 0.5), ImageError, "image.webp: "),
    ("no bytes", file_of(b""), ImageError, "image.png: not an image that Pillow can read"),
    ("zeros", file_of(bytes(1000)), ImageError, "image.png: not an image that Pillow can read"),
    ("text", file_of(b"GIF or not"), ImageError, "image.png: not an image that Pillow can read"),
    ("header only", file_of(b"\x89PNG\r\n\x1a\n"), ImageError, "image.png: "),
    ("no file", lambda folder: folder / "none.jpg", ImageError, "none.jpg: no such file"),
    ("a folder", lambda folder: folder, ImageError, "cannot be read as an image"),
    ("NUL in a path", lambda _: "a\0b.jpg", ImageError, "cannot be read as an image: embedded null"),
    ("a decompression bomb", file_of(bomb(60_000, 60_000)), ImageError, "image.png: .*decompression bomb"),
    ("a directory of a bomb", file_of(bomb(2**31 - 1, 1)), ImageError, "image.png: "),
    ("one pixel", image_file(Image.new("RGB", (1, 1)), "image.png"), (1, 1), ""),
    ("30,000 x 1", image_file(Image.new("RGB", (30_000, 1)), "image.png"), (30_000, 1), ""),
    ("1 x 30,000", image_file(Image.new("L", (1, 30_000)), "image.png"), (1, 30_000), ""),
    ("CMYK", image_file(Image.new("CMYK", (20, 10)), "image.jpg"), (20, 10), ""),
    ("palette", image_file(Image.new("P", (20, 10)), "image.png"), (20, 10), ""),
    ("palette with transparency", image_file(Image.new("P", (20, 10)), "image.png", transparency=0), (20, 10), ""),
    ("16 bits", image_file(Image.new("I;16", (20, 10)), "image.png"), (20, 10), ""),
    ("1 bit", image_file(Image.new("1", (20, 10)), "image.png"), (20, 10), ""),
    ("alpha", image_file(Image.new("RGBA", (20, 10)), "image.png"), (20, 10), ""),
    ("grey and alpha", image_file(Image.new("LA", (20, 10)), "image.png"), (20, 10), ""),
    ("float TIFF", image_file(Image.new("F", (20, 10)), "image.tif"), (20, 10), ""),
    ("rotated by EXIF", with_exif(6), (10, 20), ""),
    ("mirrored by EXIF", with_exif(2), (20, 10), ""),
    ("an orientation that is none", with_exif(77), (20, 10), ""),
    ("animated", animated(), (20, 10), ""),
    ("a wrong ending", image_file(Image.new("RGB", (20, 10)), "image.txt", format="PNG"), (20, 10), ""),
]


def saved(picture: Any, name: str, **options: Any) -> Callable[[Path], Path]:
    return image_file(Image.fromarray(picture), name, **options)


IMAGES += [
    (
        "PostScript",
        file_of(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"),
        ImageError,
        "not an image that Pillow",
    ),
    ("PDF", file_of(b"%PDF-1.7\n"), ImageError, "image.png: not an image that Pillow can read as one of AVIF, BMP"),
    ("Photoshop", file_of(b"8BPS" + bytes(60)), ImageError, "not an image that Pillow can read as one of AVIF"),
    ("a texture", file_of(b"DDS " + bytes(200)), ImageError, "not an image that Pillow can read as one of AVIF"),
    (
        "half of an AVIF",
        file_of(b"\0\0\0\x1cftypavif\0\0\0\0avifmif1miaf" + bytes(9)),
        ImageError,
        "image.png: .*AVIF|read",
    ),
    (
        "floats beyond 1",
        saved(np.array([[0, 1.5]], np.float32), "a.tif"),
        ImageError,
        "expected floats in 0..1, got 0 to 1.5",
    ),
    (
        "floats of NaN",
        saved(np.array([[0, NAN]], np.float32), "a.tif"),
        ImageError,
        "expected floats in 0..1, got nan to nan",
    ),
    (
        "32 bits",
        saved(np.array([[0, 10**6]], np.int32), "a.tif"),
        ImageError,
        "expected whole numbers of 16 bits, .* 0 to 1000000",
    ),
    ("floats in 0..1", saved(np.array([[0, 0.5]], np.float32), "a.tif"), (2, 1), ""),
    ("a device", lambda _: "/dev/null", ImageError, "/dev/null: expected a regular file, got a pipe or a device"),
]
PIXELS = np.random.default_rng(0).integers(0, 256, (10, 20, 3), np.uint8)
ARRAYS: list[Case] = [
    ("floats", lambda _: PIXELS / 255, ImageError, "image array: expected dtype uint8 .* got float64"),
    ("NaN", lambda _: np.full((4, 4, 3), np.nan), ImageError, "expected dtype uint8"),
    ("int64", lambda _: PIXELS.astype(np.int64), ImageError, "expected dtype uint8 .* got int64"),
    ("bool", lambda _: PIXELS > 9, ImageError, "expected dtype uint8 .* got bool"),
    ("objects", lambda _: np.array([None]), ImageError, "expected dtype uint8 .* got object"),
    ("channels first", lambda _: PIXELS.transpose(2, 0, 1), ImageError, r"expected shape \(H, W, 3\)"),
    ("four channels", lambda _: np.zeros((4, 4, 4), np.uint8), ImageError, r"expected shape \(H, W, 3\)"),
    ("a batch", lambda _: PIXELS[None], ImageError, r"expected shape \(H, W, 3\)"),
    ("a row", lambda _: PIXELS[0, :, 0], ImageError, r"expected shape \(H, W, 3\)"),
    ("a number", lambda _: np.uint8(3), ImageError, "expected a path, bytes, .* or torch tensor, got uint8"),
    ("no rows", lambda _: PIXELS[:0], ImageError, "at least one pixel"),
    ("no columns", lambda _: PIXELS[:, :0], ImageError, "at least one pixel"),
    ("pixels as bytes", lambda _: PIXELS.tobytes(), ImageError, "image bytes: not an image that Pillow can read"),
    ("None", lambda _: None, ImageError, "expected a path, .* got NoneType"),
    ("negative strides", lambda _: PIXELS[::-1, ::-1], (20, 10), ""),
    ("BGR by a view", lambda _: PIXELS[..., ::-1], (20, 10), ""),
    ("not contiguous", lambda _: np.zeros((20, 40, 3), np.uint8)[::2, ::2], (20, 10), ""),
    ("read only", lambda _: np.frombuffer(PIXELS.tobytes(), np.uint8).reshape(10, 20, 3), (20, 10), ""),
    ("grey", lambda _: PIXELS[..., 0], (20, 10), ""),
    ("float tensor", lambda _: torch.rand(3, 10, 20), ImageError, "image tensor: expected dtype uint8"),
    ("channels last", lambda _: torch.from_numpy(PIXELS), ImageError, r"image tensor: expected shape \(3, H, W\)"),
    ("tensor without pixels", lambda _: torch.empty(3, 0, 5, dtype=torch.uint8), ImageError, "at least one pixel"),
    ("strided tensor", lambda _: torch.zeros(3, 20, 40, dtype=torch.uint8)[:, ::2, ::2], (20, 10), ""),
    ("an image without pixels", lambda _: Image.new("RGB", (0, 5)), ImageError, "at least one pixel, got 0 x 5"),
]


@pytest.mark.parametrize(
    ("what", "make", "expected", "message"), IMAGES + ARRAYS, ids=[case[0] for case in IMAGES + ARRAYS]
)
def test_images(
    tmp_path: Path, what: str, make: Callable[[Path], Any], expected: type[Exception] | tuple[int, int], message: str
) -> None:
    source = make(tmp_path)
    if isinstance(expected, tuple):
        opened = open_image(source)
        assert (opened.size, opened.mode) == (expected, "RGB"), what
        return
    with pytest.raises(expected, match=message) as raised:
        open_image(source)
    assert "\n" not in str(raised.value)


REGIONS: list[tuple[str, Callable[[], Any], str]] = [
    ("a NaN in a box", lambda: Box(NAN, 0, 1, 1), "Box x1: expected a finite number, got nan"),
    ("an infinite box", lambda: Box(0, 0, INF, 1), "Box x2: expected a finite number, got inf"),
    ("an inverted box", lambda: Box(9, 0, 1, 1), "expected x1 < x2 and y1 < y2"),
    ("an empty box", lambda: Box(1, 1, 1, 5), "expected x1 < x2 and y1 < y2"),
    ("a box outside", lambda: Box(900, 900, 950, 950), "lies outside the image of 320 x 240 pixels"),
    ("a box left of it", lambda: Box(-9, 0, 0, 9), "lies outside the image of 320 x 240 pixels"),
    ("a box of text", lambda: Box("a", 0, 1, 1), "Box x1: expected a number, got 'a'"),  # type: ignore[arg-type]
    ("an unknown pool", lambda: Box(0, 0, 1, 1, pool="max"), "pool"),  # type: ignore[arg-type]
    ("a negative variance", lambda: Box(0, 0, 1, 1, pool="gaussian", variance=-1), "variance of at least 0"),
    ("a box of no size", lambda: Box.from_xywh(5, 5, 0, 5), "expected x1 < x2 and y1 < y2"),
    ("an empty set", lambda: BoxSet([]), "BoxSet: expected at least one box, got none"),
    ("a set of triples", lambda: BoxSet([(1, 2, 3)]), "expected boxes of 4 numbers, got 3"),
    ("a set with one outside", lambda: BoxSet([Box(0, 0, 9, 9), Box(900, 0, 950, 9)]), "lies outside the image"),
    ("a crop outside", lambda: Crop(900, 900, 950, 950), "lies outside the image"),
    ("a crop of no whole pixel", lambda: Crop(5.1, 5.1, 5.2, 5.2), "expected at least one whole pixel"),
    ("a crop of NaN", lambda: Crop(0, NAN, 1, 1), "Crop y1: expected a finite number"),
    ("an empty mask", lambda: Mask(np.zeros((240, 320), bool)), "Mask: it is empty"),
    ("a mask of another shape", lambda: Mask(np.ones((24, 40), bool)), "region 1: .*40x24.*320 x 240"),
    ("a mask on its side", lambda: np.ones((320, 240)), "the image's size, 320 x 240 pixels, or its aspect ratio"),
    ("a mask of a model's square", lambda: np.ones((640, 640)), "or cut off what its model has padded"),
    ("masks in one region", lambda: np.ones((2, 240, 320)), r"mask: expected an array \(H, W\) or \(1, H, W\)"),
    ("a map of labels", lambda: np.arange(76800).reshape(240, 320) % 3, "got 3 numbers; of a map of labels, give"),
    ("logits", lambda: np.linspace(-3, 3, 76800).reshape(240, 320), "got -3 to 3; of logits, give logits > 0"),
    ("an empty picture", lambda: Image.new("L", (320, 240)), "Mask: it is empty"),
    ("a mask of NaN", lambda: Mask(np.full((240, 320), NAN)), "Mask: expected finite numbers"),
    ("a mask of colours", lambda: Mask(np.ones((240, 320, 3))), r"Mask: expected a numeric array \(H, W\)"),
    ("a mask of text", lambda: Mask(np.full((240, 320), "x")), "Mask: expected a numeric array"),
    ("a mask without pixels", lambda: Mask(np.ones((0, 0))), "Mask: it is empty"),
    ("a polygon of two points", lambda: Polygon([(0, 0), (5, 5)]), "Polygon: expected at least three points, got 2"),
    ("a polygon of NaN", lambda: Polygon([(0, 0), (5, NAN), (9, 9)]), "expected a finite number, got nan"),
    ("a polygon outside", lambda: Polygon([(900, 900), (950, 900), (950, 950)]), "region 1: it covers nothing"),
    ("a polygon without area", lambda: Polygon([(5, 5), (9, 9), (13, 13)]), "region 1: it covers nothing"),
    ("a trace without points", lambda: Trace([]), "Trace: expected at least one point, got none"),
    ("a trace of numbers", lambda: Trace([1, 2]), "Trace.*expected points of 2 numbers .* got 1"),  # type: ignore[list-item]
    ("a trace of NaN", lambda: Trace([(NAN, 0)]), "expected a finite number"),
    ("a trace outside", lambda: Trace([(900, 900)]), "no point of it lies on the image"),
    ("a trace beyond 0..1", lambda: Trace.normalized([(2, 2)]), "no point of it lies on the image"),
    ("a point outside", lambda: Point(321, 5), "lies outside the image of 320 x 240 pixels"),
    ("an infinite point", lambda: Point(-INF, 5), "Point x: expected a finite number, got -inf"),
    ("a patch too far", lambda: Patch(16, 0), "the grid has 16 x 16 patches, numbered from 0"),
    ("a negative patch", lambda: Patch(-1, 0), "expected a whole number from 0 on, got -1"),
    ("half a patch", lambda: Patch(0.5, 0), "expected a whole number from 0 on, got 0.5"),  # type: ignore[arg-type]
    ("a register too far", lambda: Register(4), "the backbone has 4 registers, numbered from 0"),
    ("a head too far", lambda: AttentionHead(99), "heads, numbered from 0"),
    ("an unknown whole", lambda: WholeImage(pool="sum"), "WholeImage.*'sum'"),  # type: ignore[arg-type]
    ("three numbers", lambda: (1, 2, 3), "expected a box as x1, y1, x2, y2 or a polygon as x, y, .*, got 3 numbers"),
    ("seven numbers", lambda: list(range(7)), "expected a box as x1, y1, x2, y2 or a polygon .*, got 7 numbers"),
    ("a detector's row", lambda: [5, 5, 90, 90, 0.9, 2], "a triangle, or a box with its confidence and class"),
    ("corners of NaN", lambda: torch.tensor([NAN, 0, 1, 1], dtype=torch.bfloat16), "Box x1: expected a finite number"),
    ("corners outside", lambda: [900, 900, 950, 950], "lies outside the image of 320 x 240 pixels"),
    ("corners and a size", lambda: [200, 100, 20, 10], "use Box.from_xywh"),
    ("two points", lambda: [(1, 2), (3, 4)], "expected a Box, Mask, Trace or another region kind, .*, got list of 2"),
    ("a polygon of text", lambda: ["a"] * 6, "got list of 6"),
    ("truth values", lambda: [True, False, True, True], "got list of 4"),
    ("text", lambda: "0,0,9,9", "or a box of 4 numbers, got str"),
    ("an array of text", lambda: np.array(["a"] * 4), "expected numbers as numbers of shape"),
    ("an empty dictionary", dict, "expected a region with one of the keys kind, .*, got none"),
    ("a dictionary of other things", lambda: {"rect": [1, 2, 3, 4]}, "expected a region with one of the keys"),
    ("an unknown kind", lambda: {"kind": "circle", "x": 1}, "expected as \"kind\" box, .*, got 'circle'"),
    ("an unknown key", lambda: {"kind": "point", "x": 1, "y": 2, "z": 3}, "point: expected x and y, got 'z'"),
    ("COCO's box of no size", lambda: {"bbox": [5, 5, 0, 5]}, "expected x1 < x2 and y1 < y2"),
    ("COCO's box of three", lambda: {"bbox": [5, 5, 5]}, "bbox: expected the 4 numbers x, y, width, height"),
    ("COCO's box of words", lambda: {"bbox": "5,5,9,9"}, "bbox: expected the 4 numbers x, y, width, height"),
    ("a segmentation of one point", lambda: {"segmentation": [[5, 5]]}, "Polygon: expected at least three points"),
    ("an odd segmentation", lambda: {"segmentation": [[1, 2, 3, 4, 5, 6, 7]]}, "x and y of each point in turn, got 7"),
    ("a segmentation of text", lambda: {"segmentation": "RLE"}, "expected polygons, run lengths or a mask, got str"),
    ("runs without a size", lambda: {"counts": [1, 2]}, "mask: expected size and counts, got no size"),
    ("runs of another length", lambda: {"size": [240, 320], "counts": [5]}, "mask counts: expected runs that sum to"),
    ("negative runs", lambda: {"size": [1, 2], "counts": [-1, 3]}, "mask counts: expected whole numbers from 0"),
    (
        "runs of no characters",
        lambda: {"size": [1, 2], "counts": b"\xff\xfe"},
        "mask counts: expected COCO's compressed",
    ),
    ("runs of a bomb", lambda: {"size": [10**9, 10**9], "counts": "0"}, "mask size: expected a height and width of 1"),
    ("a pipeline's box of numbers", lambda: {"box": [1, 2, 3, 4]}, "box: expected a dictionary of xmin"),
    ("a pipeline's half of a box", lambda: {"box": {"xmin": 1, "xmax": 5}}, "got xmin, xmax"),
    ("a summary of half an outline", lambda: {"segments": {"x": [1, 2, 3]}}, "segments: expected"),
    ("a confidence of NaN", lambda: {"bbox": [5, 5, 9, 9], "score": NAN}, "confidence: expected a finite number"),
    (
        "a confidence of text",
        lambda: {"bbox": [5, 5, 9, 9], "score": "high"},
        "confidence: expected a number, got 'high'",
    ),
    ("half an id", lambda: {"bbox": [5, 5, 9, 9], "id": 0.5}, "id: expected a whole number, got 0.5"),
    ("a class of a list", lambda: {"bbox": [5, 5, 9, 9], "class_id": []}, r"class id: expected a number, got \[\]"),
    ("None", lambda: None, "expected a Box, Mask, Trace or another region kind"),
]


@pytest.fixture(scope="module")
def features(demo: Captioner) -> FeatureMap:
    return demo.encode(np.zeros((240, 320, 3), np.uint8))


@pytest.mark.parametrize(("what", "make", "message"), REGIONS, ids=[case[0] for case in REGIONS])
def test_regions(demo: Captioner, features: FeatureMap, what: str, make: Callable[[], Any], message: str) -> None:
    with pytest.raises(RegionError, match=message) as raised:
        demo.vectors(features, [WholeImage(), make()])
    assert "\n" not in str(raised.value), what


def test_very_many_regions_are_no_mistake(demo: Captioner, features: FeatureMap) -> None:
    assert demo.vectors(features, [Point(1, 1)] * 20_000).shape[0] == 20_000


def found(**parts: Any) -> SimpleNamespace:
    return SimpleNamespace(**parts)


CORNERS = [5, 5, 90, 90]


@pytest.mark.parametrize(
    ("regions", "message"),
    [
        ("box", "regions: expected a list of regions, got str"),
        (None, "regions: expected a list of regions, got NoneType"),
        (7, "regions: expected a list of regions, got int"),
        ({Box(0, 0, 1, 1)}, "regions: expected a list of regions, got set"),
        (iter([Box(0, 0, 1, 1)]), "regions: expected a list of regions, got list_iterator"),
        ([[WholeImage()], [WholeImage()]], "regions: expected 1 lists, one for each image, got 2"),
        ([1, 2, 3], "regions: expected a box as x1, y1, x2, y2 or a polygon"),
        ([(1, 2), (3, 4), (5, 6)], "regions: expected a list of regions, got a list of points"),
        (np.ones((3, 2)), r"expected boxes \(n, 4\) or masks \(n, H, W\), got shape \(3, 2\), of points"),
        (np.ones((3, 6)), r"expected boxes \(n, 4\), got shape \(3, 6\): give the first four columns"),
        (np.ones((2, 3, 240, 320)), r"expected mask of shape \(n, H, W\), got .*; take one mask of each"),
        (torch.zeros(3, 4, dtype=torch.complex64), "expected boxes as numbers of shape .*, got complex64"),
        (np.array([["a"] * 4]), "expected boxes as numbers of shape .*, got <U1"),
        ({}, "regions: expected a region with one of the keys"),
        ({"boxes": 5}, r"expected boxes of shape \(n, 4\), got \(\)"),
        ({"boxes": [[1, 2], [3]]}, "expected boxes as numbers of shape"),
        ({"boxes": [CORNERS], "scores": [0.5, 0.4]}, "expected 1 of confidence, one for each region, got 2"),
        ({"boxes": [CORNERS], "labels": []}, "expected 1 of class_id, one for each region, got 0"),
        ({"boxes": [CORNERS], "masks": []}, "expected as many masks as boxes, got 0 and 1"),
        ({"segmentation": None, "segments_info": [{"id": 1}]}, "segmentation: expected a map of ids"),
        ({"segmentation": np.ones((240, 320)), "segments_info": [5]}, "segments_info: expected a list of dictionaries"),
        ({"segmentation": np.ones((240, 320)), "segments_info": [{"id": 9}]}, "region 0: .*no pixel has the id 9"),
        ({"annotations": {}}, "annotations: expected a list of dictionaries"),
        ({"annotations": "all"}, "annotations: expected a list of dictionaries"),
        ({"annotations": [{"image_id": 1}, {"image_id": 2}]}, "expected those of one image, got those of 2"),
        ({"annotations": [{"image_id": 1}]}, "region 0: expected a region with one of the keys .*, got image_id"),
        (found(xyxy=None), "expected xyxy or mask, got SimpleNamespace with neither"),
        (found(xyxy=np.ones((2, 5))), r"expected xyxy of shape \(n, 4\), got \(2, 5\)"),
        (found(xyxy=np.array([CORNERS]), mask=np.ones((2, 240, 320))), "expected as many masks as boxes, got 2 and 1"),
        (found(xyxy=np.array([CORNERS]), mask=np.ones((1, 24, 40))), "region 0: Mask.40x24.*its aspect ratio"),
        (found(xyxy=np.array([CORNERS]), confidence=np.ones((1, 2))), r"confidence of shape \(n,\), got \(1, 2\)"),
        (found(xyxyn=np.ones((2, 3))), r"expected xyxyn of shape \(n, 4\), got \(2, 3\)"),
        (found(boxes=None, masks=None, obb=None), "expected boxes or masks, got neither"),
        (
            found(boxes=found(xyxy=[CORNERS]), orig_shape=(24, 32)),
            "of an image of 32 x 24 pixels, and this one has 320",
        ),
    ],
)
def test_lists_of_regions_that_are_none(demo: Captioner, features: FeatureMap, regions: Any, message: str) -> None:
    with pytest.raises(RegionError, match=message):
        demo.vectors(features, regions)


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


FILES = ["backbone.onnx", "backbone.onnx.data", "decoder.onnx", "decoder.onnx.data", "memory.safetensors"]
FILES += ["captions.jsonl", "tokenizer.json", "beam_decoder.onnx", "reencoder.onnx"]


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (Path.unlink, "missing"),
        (truncate, "truncated: expected [0-9]+ bytes, got"),
        (flip_a_bit, "altered"),
        (lambda path: path.write_bytes(path.read_bytes() + b" "), "expected [0-9]+ bytes, got"),
    ],
    ids=["missing", "truncated", "one bit", "one byte more"],
)
def test_files_of_a_bundle(
    bundle_copy: Callable[[], Path], file: str, spoil: Callable[[Path], Any], message: str
) -> None:
    folder = bundle_copy()
    spoil(folder / file)
    with pytest.raises(BundleError, match=f"{re.escape(str(folder / file))}: .*{message}|{re.escape(file)}.*{message}"):
        Captioner.load(folder)


def change(*path: str, to: Any) -> Callable[[dict[str, Any]], None]:
    """Return an edit of a manifest that replaces the value at a path of names."""

    def edit(manifest: dict[str, Any]) -> None:
        part = manifest
        for name in path[:-1]:
            part = part[name]
        part[path[-1]] = to

    return edit


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (change("schema_version", to=999), "999"),
        (change("schema_version", to="new"), "schema"),
        (change("schema_version", to=1), "schema 1, .* build the bundle again"),
        (change("backbone", "output_dim", to=0), "backbone.output_dim"),
        (change("backbone", "output_dim", to="wide"), "backbone.output_dim"),
        (change("backbone", to=None), "backbone"),
        (change("backbone", "tokens", "global_tokens", to=["mask"]), "backbone.tokens.global_tokens.0"),
        (change("backbone", "tokens", "grid", to=15), "grid . patch_size = image_size, got 15 . 14 and 224"),
        (change("backbone", "preprocessing", "resample", to="nearest"), "backbone.preprocessing.resample"),
        (change("backbone", "text_space", to="../space"), "backbone.text_space"),
        (change("decoder", "kind", to="parrot"), "decoder.kind"),
        (change("decoder", "batch_sizes", to=[]), "decoder.batch_sizes"),
        (change("engines", "backbone", "file", to="../../etc/passwd"), "engines.backbone.file"),
        (change("engines", "backbone", "file", to="/etc/passwd"), "engines.backbone.file"),
        (change("engines", to={}), "engines: backbone is missing"),
        (change("tokenizer", to="..\\tokenizer.json"), "tokenizer"),
        (change("tokenizer", to=""), "tokenizer"),
        (change("memory", "embeddings", to="~/bank"), "memory.embeddings"),
        (change("memory", "temperature", to=-1), "memory.temperature"),
        (change("memory", "captions", to="none.jsonl"), "none.jsonl"),
        (change("decoder", "max_new_tokens", to=10**9), "decoder.max_new_tokens"),
        (change("decoder", "num_layers", to=10**9), "decoder.num_layers"),
        (change("decoder", "num_heads", to=10**9), "decoder.num_heads"),
        (change("decoder", "head_dim", to=10**9), "decoder.head_dim"),
        (change("decoder", "vocab_size", to=10**9), "decoder.vocab_size"),
        (
            change("decoder", "eos_token_ids", to=[10**9]),
            "eos_token_ids below vocab_size, got 1000000000 of 170 tokens",
        ),
        (change("decoder", "eos_token_ids", to=[170]), "eos_token_ids below vocab_size, got 170 of 170 tokens"),
        (change("decoder", "batch_sizes", to=[1e30]), "decoder.batch_sizes"),
        (change("decoder", "batch_sizes", to=[4, 1]), "batch_sizes that rise, got 4, 1"),
        (change("decoder", "batch_sizes", to=[1, 1]), "batch_sizes that rise, got 1, 1"),
        (change("decoder", "num_heads", to=2**14), "a cache of at most 17179869184 bytes for 256 captions, got"),
        (change("backbone", "preprocessing", "image_size", to=10**9), "backbone.preprocessing.image_size"),
        (change("backbone", "preprocessing", "resize_short_side", to=10**9), "preprocessing.resize_short_side"),
        (change("backbone", "preprocessing", "std", to=[1, 1, float("inf")]), "preprocessing.std|manifest.json"),
        (change("backbone", "patch_size", to=1), "grid . patch_size = image_size"),
        (change("backbone", "tokens", "global_tokens", to=["register"] * 10**5), "backbone.tokens.global_tokens"),
        (change("backbone", "tokens", "grid", to=10**9), "backbone.tokens.grid"),
        (change("backbone", "max_batch_size", to=10**30), "backbone.max_batch_size"),
        (change("backbone", "attention_heads", to=10**9), "backbone.attention_heads"),
        (change("memory", "num_rows", to=2**63), "memory.num_rows"),
        (change("memory", "refine_top_k", to=2**60), "memory.refine_top_k"),
        (change("memory", "temperature", to=1e-30), "memory.temperature"),
        (change("files", "captions.jsonl", "bytes", to=2**40), "files.captions.jsonl.bytes"),
        (change("files", "captions.jsonl", "bytes", to=2**33), "files.captions.jsonl: expected at most 10321920 bytes"),
        (change("files", "tokenizer.json", "bytes", to=10**30), "files.tokenizer.json.bytes"),
        (change("files", to={}), "backbone.onnx|files"),
        (change("unknown", to=1), "unknown"),
    ],
)
def test_manifests(bundle_copy: Callable[[], Path], edit: Callable[[dict[str, Any]], None], message: str) -> None:
    path = bundle_copy() / "manifest.json"
    manifest = json.loads(path.read_text())
    edit(manifest)
    path.write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match=message):
        Captioner.load(path.parent)


LONG = "x" * 100_000


@pytest.mark.parametrize(
    "edit",
    [
        change(LONG, to=1),
        change("files", LONG, to=1),
        change("schema_version", to=LONG),
        change("schema_version", to=10**300),
        change("schema_version", to=[LONG] * 10),
        change("backbone", "name", to=LONG),
        change("backbone", "text_space", to=LONG),
        change("memory", "embeddings", to=LONG),
        change("engines", to={LONG: {}}),
        change("backend", to=LONG),
        change("tokenizer", to=f"{LONG}.json"),
    ],
)
def test_manifests_are_quoted_in_short(bundle_copy: Callable[[], Path], edit: Callable[[dict[str, Any]], None]) -> None:
    path = bundle_copy() / "manifest.json"
    manifest = json.loads(path.read_text())
    edit(manifest)
    path.write_text(json.dumps(manifest))
    with pytest.raises(BundleError) as raised:
        Captioner.load(path.parent)
    assert len(str(raised.value)) < 1000


def test_a_message_is_never_as_long_as_what_it_quotes() -> None:
    text = str(BundleError(f"here: {LONG}; build the bundle again"))
    assert len(text) < 2000
    assert text.startswith("here: xxx")
    assert text.endswith("; build the bundle again")


@pytest.mark.parametrize("text", ["", "{", "null", "[]", "\ufeff{}", '{"schema_version": NaN}', "\0" * 100])
def test_manifests_that_are_no_manifests(bundle_copy: Callable[[], Path], text: str) -> None:
    path = bundle_copy() / "manifest.json"
    path.write_text(text)
    with pytest.raises(BundleError, match="manifest.json"):
        Captioner.load(path.parent)


def test_a_file_of_another_bundle_is_not_this_ones(bundle_copy: Callable[[], Path]) -> None:
    """The tokenizer of another bundle: whole, right in itself, and not what was built here."""
    folder = bundle_copy()
    other = json.loads((folder / "tokenizer.json").read_text())
    other["added_tokens"] = []
    (folder / "tokenizer.json").write_text(json.dumps(other))
    with pytest.raises(BundleError, match="tokenizer.json"):
        Captioner.load(folder)


@pytest.mark.parametrize("backend", ["cpu", "openvino"])
@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (
            change("backbone", "output_dim", to=96),
            r"output 'tokens': the manifest says .*, 261, 96\).*, got .*, 261, 192\)",
        ),
        (change("backbone", "attention_heads", to=12), r"says \(images, 12, 256\) of f32, got \(images, 3, 256\)"),
        (change("backbone", "tokens", "global_tokens", to=[]), r"says \(images, 256, 192\) of f32, got .* 261, 192\)"),
        (
            change("backbone", "tokens", "global_tokens", to=["cls"] * 6),
            r"says \(images, 262, 192\) of f32, got .* 261",
        ),
        (
            change("decoder", "num_heads", to=2),
            r"decoder.onnx: .* \(regions, 4\), \(regions, 2\) do not fit each other",
        ),
        (change("decoder", "head_dim", to=16), r"decoder.onnx: .* \(regions, 4, 1, 32\), \(regions, 4, 16, 30\)"),
        (change("decoder", "max_new_tokens", to=31), r"decoder.onnx: .* takes places \(0, 30\) of an axis of size 30"),
        (change("decoder", "num_layers", to=3), "decoder.onnx: .* got 'past_key_values.3.key'"),
        (change("decoder", "num_layers", to=5), "decoder.onnx: .* says inputs .* past_key_values.4.value, got"),
        (change("decoder", "cache_precision", to="fp16"), "decoder.onnx: .* inputs of the types f32 f16"),
    ],
)
def test_numbers_that_are_not_the_graphs(
    bundle_copy: Callable[[], Path], edit: Callable[[dict[str, Any]], None], message: str, backend: str
) -> None:
    path = bundle_copy() / "manifest.json"
    manifest = json.loads(path.read_text())
    edit(manifest)
    path.write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match=message):
        Captioner.load(path.parent, backend)


@pytest.mark.parametrize(
    "text", ["日本語の説明", "שלום", "a\u0301", "👩‍👩‍👧", "\u202eright to left", "two\nlines", "\x00", "x" * 5000, ""]
)
def test_captions_of_any_writing_are_drawn(text: str) -> None:
    drawn = draw_captions(np.zeros((60, 80, 3), np.uint8), [Caption(text, 1.0, (), Box(5, 5, 50, 40))])
    assert drawn.size == (80, 60)


numbers = st.floats(allow_nan=True, allow_infinity=True, width=32) | st.integers(-(10**6), 10**6)
points = st.lists(st.tuples(numbers, numbers), max_size=6)
kinds = st.one_of(
    st.builds(lambda *corners: (Box, corners), numbers, numbers, numbers, numbers),
    st.builds(lambda *corners: (Crop, corners), numbers, numbers, numbers, numbers),
    st.builds(lambda x, y: (Point, (x, y)), numbers, numbers),
    st.builds(lambda line: (Polygon, (line,)), points),
    st.builds(lambda line: (Trace, (line,)), points),
    st.builds(lambda line: (Trace.normalized, (line,)), points),
    st.builds(lambda row, column: (Patch, (row, column)), numbers, numbers),
    st.builds(lambda index: (Register, (index,)), numbers),
    st.builds(lambda mask: (Mask, (mask,)), arrays.arrays(np.float32, st.tuples(st.integers(0, 4), st.integers(0, 4)))),
)


@given(kinds)
@settings(max_examples=300, deadline=None)
def test_any_region_is_described_or_refused(demo: Captioner, features: FeatureMap, kind: Any) -> None:
    make, arguments = kind
    try:
        vectors = demo.vectors(features, [make(*arguments)])
    except RegionError:
        return
    assert vectors.shape == (1, demo.manifest.backbone.output_dim)
    assert vectors.isfinite().all()


@given(
    arrays.arrays(
        st.sampled_from([np.uint8, np.int16, np.float32, np.bool_]),
        arrays.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=6),
    )
)
@settings(max_examples=200, deadline=None)
def test_any_array_is_an_image_or_refused(array: np.ndarray[Any, Any]) -> None:
    is_image = array.dtype == np.uint8 and array.size > 0
    is_image = is_image and (array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 3))
    try:
        opened = open_image(array)
    except ImageError:
        assert not is_image
    else:
        assert is_image
        assert opened.size == (array.shape[1], array.shape[0])


@given(
    st.binary(max_size=200), st.sampled_from([b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF89a", b"RIFF....WEBP"])
)
@settings(max_examples=150, deadline=None)
def test_any_bytes_are_refused_or_read(tmp_path_factory: pytest.TempPathFactory, data: bytes, head: bytes) -> None:
    path = tmp_path_factory.mktemp("bytes") / "image"
    path.write_bytes(head + data)
    with contextlib.suppress(ImageError):
        assert open_image(path).mode == "RGB"
