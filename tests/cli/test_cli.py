"""The command line: results on stdout, one line on stderr when something is wrong, exit codes that mean something."""

from __future__ import annotations

import io
import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pytest
from PIL import Image

from runtime import Captioner
from runtime.cli.main import main
from tests.conftest import SAMPLE

SCENE = str(SAMPLE / "scene.jpg")
SIDE = 672  # of the sample, in pixels
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Return a function that runs the command and returns its exit code, stdout and stderr."""

    def call(*arguments: object) -> tuple[int, str, str]:
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as stop:
            code = int(stop.code or 0)
        out, err = capsys.readouterr()
        return code, out, err

    return call


@pytest.fixture
def mask(tmp_path: Path) -> Path:
    path = tmp_path / "mask.png"
    array = np.zeros((SIDE, SIDE), np.uint8)
    array[200:300, 200:300] = 255
    Image.fromarray(array).save(path)
    return path


def test_the_sample_scene_is_described_as_the_readme_says(run: Run, demo_bundle: Path) -> None:
    regions = shlex.split((SAMPLE / "regions.txt").read_text())
    regions = [part.replace("export/demo/sample", str(SAMPLE)) for part in regions]
    code, out, err = run("caption", SCENE, "--bundle", demo_bundle, *regions)
    assert (code, err) == (0, "")
    expected = (SAMPLE / "captions.txt").read_text().splitlines()
    assert [line.split(maxsplit=1)[1] for line in out.splitlines()] == expected


def test_captions_come_in_the_order_of_the_flags(run: Run, demo_bundle: Path, mask: Path) -> None:
    flags = ["--point", "5,5", "--box", "10,20,200,180", "--mask", mask, "--boxes", "0,0,9,9 20,20,99,99"]
    flags += ["--trace", "0.1,0.2 0.3,0.4", "--trace-pixels", "67.2,134.4 201.6,268.8", "--whole"]
    flags += ["--crop", "10,20,200,180", "--polygon", "10,10 200,10 200,180", "--n-best", "2", "--json"]
    code, out, _ = run("caption", SCENE, "--bundle", demo_bundle, *flags)
    assert code == 0
    lines = [json.loads(line) for line in out.splitlines()]
    kinds = ["point", "box", "mask", "box_set", "trace", "trace", "whole_image", "crop", "polygon"]
    assert [line["region"]["kind"] for line in lines] == kinds
    assert lines[1]["region"] == {"kind": "box", "xyxy": [10, 20, 200, 180], "pool": "mean", "variance": 0.5}
    assert lines[7]["region"] == {"kind": "crop", "xyxy": [10, 20, 200, 180]}
    assert sum(lines[2]["region"]["counts"][1::2]) == 100 * 100, "the pixels in the mask"
    assert lines[4]["ids"] == lines[5]["ids"], "the same trace in shares and in pixels"
    for line in lines:
        assert 0 < line["score"] <= 1
        assert line["text"]
        assert line["nearest"][0]["similarity"] >= line["nearest"][1]["similarity"]


REGIONS = [{"kind": "box", "xyxy": [10, 20, 200, 180]}, {"kind": "patch", "row": 7, "column": 8}]


def test_regions_of_a_file_come_among_the_others_in_the_order_given(
    run: Run, demo_bundle: Path, tmp_path: Path
) -> None:
    file = tmp_path / "regions.json"
    file.write_text(json.dumps(REGIONS))
    flags = ["--point", "5,5", "--regions", file, "--whole", "--regions", file, "--json"]
    code, out, err = run("caption", SCENE, "--bundle", demo_bundle, *flags)
    assert (code, err) == (0, "")
    lines = [json.loads(line) for line in out.splitlines()]
    assert [line["region"]["kind"] for line in lines] == ["point", "box", "patch", "whole_image", "box", "patch"]
    assert lines[1] == lines[4]
    written = tmp_path / "written.json"
    written.write_text(json.dumps([line["region"] for line in lines]))
    assert run("caption", SCENE, "--bundle", demo_bundle, "--regions", written, "--json") == (0, out, "")


def test_regions_may_come_from_stdin(run: Run, demo_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(json.dumps(REGIONS).encode())))
    code, out, _ = run("caption", SCENE, "--bundle", demo_bundle, "--regions", "-", "--json")
    assert code == 0
    assert [json.loads(line)["region"]["kind"] for line in out.splitlines()] == ["box", "patch"]


def test_a_list_without_regions_has_no_captions(run: Run, demo_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "none.json").write_text("[]")
    assert run("caption", SCENE, "--bundle", demo_bundle, "--regions", tmp_path / "none.json") == (0, "", "")


def test_the_former_name_of_the_bundles_flag_is_taken_too(run: Run, demo_bundle: Path) -> None:
    arguments = ["caption", SCENE, "--whole"]
    assert run(*arguments, "--engines", demo_bundle) == run(*arguments, "--bundle", demo_bundle)


def test_the_nearest_captions_of_the_memory_are_shown_under_each(run: Run, demo_bundle: Path) -> None:
    _, out, _ = run("caption", SCENE, "--bundle", demo_bundle, "--mode", "nearest", "--n-best", "2", "--whole")
    caption, first, second = out.splitlines()
    assert first.split() == caption.split()
    assert second.startswith("    0.")


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA", "I;16"])
def test_masks_may_be_pictures_of_any_kind(run: Run, demo_bundle: Path, mask: Path, tmp_path: Path, mode: str) -> None:
    with Image.open(mask) as picture:
        shaped = picture.convert("RGBA") if mode in ("RGBA", "LA") else picture
        if mode in ("RGBA", "LA"):  # white all over, and transparent outside
            shaped = Image.merge("RGBA", [Image.new("L", picture.size, 255)] * 3 + [picture])
        (shaped.convert(mode) if mode != "I;16" else picture.convert("I").convert("I;16")).save(tmp_path / "m.png")
    _, out, _ = run("caption", SCENE, "--bundle", demo_bundle, "--mask", tmp_path / "m.png", "--json")
    assert sum(json.loads(out)["region"]["counts"][1::2]) == 100 * 100


def test_no_region_is_the_whole_image(run: Run, demo_bundle: Path) -> None:
    assert run("caption", SCENE, "--bundle", demo_bundle) == run("caption", SCENE, "--bundle", demo_bundle, "--whole")


def test_the_picture_shows_every_region(run: Run, demo_bundle: Path, mask: Path, tmp_path: Path) -> None:
    picture = tmp_path / "out.png"
    flags = ["--mask", mask, "--box", "480,30,640,180", "--trace", "0.1,0.9 0.3,0.8", "--save", picture]
    code, _, _ = run("caption", SCENE, "--bundle", demo_bundle, *flags)
    assert code == 0
    with Image.open(picture) as drawn, Image.open(SCENE) as plain:
        assert drawn.size == plain.size
        changed = (np.asarray(drawn.convert("RGB")) != np.asarray(plain.convert("RGB"))).any(axis=2)
    assert changed[210:290, 210:290].mean() > 0.95  # the mask's tint
    assert changed[100, [480, 640]].all()  # the box's sides
    assert not changed[100, 560]  # and not its inside
    assert changed[int(0.9 * SIDE), int(0.1 * SIDE)]  # the trace


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["missing.jpg"], 2, "missing.jpg: no such file"),
        (["{text}"], 2, "not an image that Pillow can read"),
        (["{scene}", "--box", "1,2,3"], 2, "argument --box: expected 4 numbers with commas between them, got '1,2,3'"),
        (["{scene}", "--box", "nan,0,5,5"], 2, "expected a finite number, got nan"),
        (["{scene}", "--box", "9,0,5,5"], 2, "expected x1 < x2"),
        (["{scene}", "--box", "700,0,800,9"], 2, "region 0: Box(x1=700.0, y1=0.0, x2=800.0, y2=9.0, pool='mean', "),
        (
            ["{scene}", "--point", "0,0", "--point", "700,0", "--on-bad", "raise"],
            2,
            "region 1: Point(x=700.0, y=0.0) lies outside",
        ),
        (["{scene}", "--point", "900,0", "--point", "700,0"], 2, "region 0: Point(x=900.0, y=0.0) lies outside"),
        (["{scene}", "{text}", "--on-bad", "raise", "--box", "700,0,800,9"], 2, "scene.jpg: region 0: Box(x1=700.0"),
        (["missing.jpg", "{text}"], 2, "missing.jpg: no such file; and 1 more"),
        ([""], 2, "'': no such file"),
        (["none-*.jpg"], 2, "none-*.jpg: no such file, and none that the pattern matches"),
        (["{scene}", "{scene}", "--save", "-"], 2, "--save stdout: expected a folder, as the pictures may be several"),
        (["{scene}", "{scene}", "--save", "{text}"], 2, "text.jpg: expected a folder, as the pictures may be several"),
        (["{scene}", "--point", "-1,5"], 2, "region 0: Point(x=-1.0, y=5.0) lies outside"),
        (["{scene}", "--box", "-9,-.5,-5,0"], 2, "region 0: Box(x1=-9.0, y1=-0.5"),
        (["{scene}", "--n-best", "-1"], 2, "n_best: expected a whole number from 0 on, got -1"),
        (["{scene}", "--trace", ""], 2, "Trace: expected at least one point"),
        (["{scene}", "--trace", "2,2"], 2, "no point of it lies on the image"),
        (["{scene}", "--boxes", ""], 2, "BoxSet: expected at least one box"),
        (["{scene}", "--mask", "{black}"], 2, "Mask: it is empty"),
        (["{scene}", "--mask", "{small}"], 2, "expected the image's size, 672 x 672 pixels"),
        (["{scene}", "--mask", "gone.png"], 2, "gone.png: no such file"),
        (["{scene}", "--regions", "gone.json"], 2, "argument --regions: gone.json: no such file"),
        (["{scene}", "--regions", "."], 2, "argument --regions: .: cannot be read: Is a directory"),
        (["{scene}", "--regions", "{text}"], 2, "text.jpg: regions: expected JSON: Expecting value: line 1 column 1"),
        (["{scene}", "--regions", "{inverted}"], 2, "inverted.json: region 1: Box(x1=3.0, y1=2.0, x2=1.0, y2=4.0"),
        (["{scene}", "--backend", "tpu"], 2, "argument --backend: invalid choice: 'tpu'"),
        (["{scene}", "--save", "out.xyz"], 2, "out.xyz: expected the suffix of an image file"),
        (["{scene}", "--save", "no/such/folder/out.png"], 2, "the folder no/such/folder does not exist"),
        (["{scene}", "--save", "out.psd"], 2, "out.psd: Pillow cannot write this picture as PSD"),
        (
            ["{scene}", "--save", "out.xbm"],
            2,
            "out.xbm: Pillow cannot write this picture as XBM: cannot write",
        ),
        (["{scene}", "--save", "{scene}"], 2, "scene.jpg is read, and would be overwritten"),
        (["{scene}", "--mask", "{white}", "--save", "{white}"], 2, "white.png is read, and would be overwritten"),
        ([], 2, "the following arguments are required: image"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing_behind(
    run: Run, demo_bundle: Path, tmp_path: Path, arguments: list[str], code: int, message: str
) -> None:
    places = {"scene": SCENE, "text": str(tmp_path / "text.jpg")}
    Path(places["text"]).write_text("words")
    places["inverted"] = str(tmp_path / "inverted.json")
    Path(places["inverted"]).write_text('[{"kind": "whole_image"}, {"kind": "box", "xyxy": [3, 2, 1, 4]}]')
    for name, size in (("black", SIDE), ("white", SIDE), ("small", 100)):
        places[name] = str(tmp_path / f"{name}.png")
        Image.new("L", (size, SIDE), 0 if name == "black" else 255).save(places[name])
    before = set(Path.cwd().iterdir())
    got, out, err = run("caption", *(part.format(**places) for part in arguments), "--bundle", demo_bundle)
    assert (got, out) == (code, "")
    assert message in err
    assert err.count("\n") == 1
    assert err.startswith("patchcaption: error: ")
    assert set(Path.cwd().iterdir()) == before


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Return a folder of two photos, what is no photo but is called one, and other things."""
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    with Image.open(SCENE) as scene:
        scene.save(folder / "b.png")
        scene.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(folder / "a.JPG")
    (folder / "broken.jpg").write_bytes(b"words")
    (folder / "notes.txt").write_text("words")
    (folder / ".hidden").write_text("words")
    return folder


def test_a_folder_is_captioned_in_order_and_what_is_left_out_is_said(run: Run, demo_bundle: Path, photos: Path) -> None:
    code, out, err = run("caption", photos, "--bundle", demo_bundle, "--json", "--point", "350,330")
    assert code == 0
    lines = [json.loads(line) for line in out.splitlines()]
    assert [line["image"] for line in lines] == [str(photos / name) for name in ("a.JPG", "b.png", "broken.jpg")]
    assert lines[1]["text"] == "a large striped red triangle"
    assert "not an image that Pillow can read" in lines[2]["error"]
    first, second = err.splitlines()
    assert first.endswith(f"{photos}: 2 left out that are no images by their names: 1 .txt, 1 folders")
    assert f"{photos / 'broken.jpg'}: not an image that Pillow can read as one of AVIF, BMP, " in second


def test_files_patterns_and_folders_come_in_the_order_given(run: Run, demo_bundle: Path, photos: Path) -> None:
    names = [photos / "b.png", photos / "*.JPG", "gone.jpg", photos / "b.png"]
    code, out, err = run("caption", *names, "--bundle", demo_bundle)
    assert code == 0
    assert [Path(line.split(": ")[0]).name for line in out.splitlines()] == ["b.png", "a.JPG", "b.png"]
    assert err.splitlines() == ["patchcaption: note: gone.jpg: no such file"]
    assert run("caption", *names, "--bundle", demo_bundle, "--on-bad", "raise")[0] == 2


def test_bad_regions_are_named_and_counted_and_the_others_captioned(run: Run, demo_bundle: Path, photos: Path) -> None:
    flags = ["--box", "700,0,800,9", "--whole", "--json"]
    code, out, err = run("caption", photos / "a.JPG", photos / "b.png", "--bundle", demo_bundle, *flags)
    assert code == 0
    assert ["error" in json.loads(line) for line in out.splitlines()] == [True, False] * 2
    lines = err.splitlines()
    assert [line.split(": ")[2:4] for line in lines[:2]] == [
        [str(photos / name), "region 0"] for name in ("a.JPG", "b.png")
    ]
    assert lines[2] == "patchcaption: note: 2 without a caption"


def test_pictures_of_several_images_go_into_a_folder(run: Run, demo_bundle: Path, photos: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    Image.new("RGB", (64, 48)).save(other / "b.png")
    Image.new("RGB", (64, 48)).save(other / "c.gif")
    before = {file: file.read_bytes() for file in (*photos.glob("*.*"), *other.iterdir()) if file.is_file()}
    folder = tmp_path / "out"
    assert run("caption", photos, other, "--bundle", demo_bundle, "--save", folder)[0] == 0
    assert sorted(file.name for file in folder.iterdir()) == ["a.JPG", "b-2.png", "b.png", "c.png"]
    with Image.open(folder / "b-2.png") as second:
        assert second.size == (64, 48)
    code, _, err = run("caption", photos, "--bundle", demo_bundle, "--save", photos)
    assert code == 2
    assert f"--save {photos}: {photos / 'a.JPG'} is read, and would be overwritten" in err
    assert run("caption", other / "b.png", "--bundle", demo_bundle, "--save", folder)[0] == 0, "a folder for one image"
    assert {file: file.read_bytes() for file in before} == before


def test_annotations_of_a_data_set_are_those_of_each_image(
    run: Run, demo_bundle: Path, photos: Path, tmp_path: Path
) -> None:
    dataset = {
        "images": [{"id": 1, "file_name": "a.JPG"}, {"id": 2, "file_name": "b.png"}],
        "annotations": [
            {"image_id": 2, "id": 21, "bbox": [276, 174, 231, 225]},
            {"image_id": 1, "id": 11, "bbox": [0, 0, 9, 9]},
            {"image_id": 1, "id": 12, "bbox": [0, 0, 9, 9]},
        ],
    }
    (tmp_path / "coco.json").write_text(json.dumps(dataset))
    arguments = [photos / "a.JPG", photos / "b.png", SCENE, "--regions", tmp_path / "coco.json", "--json"]
    code, out, err = run("caption", *arguments, "--bundle", demo_bundle)
    assert code == 0
    assert [json.loads(line)["detection"]["id"] for line in out.splitlines()] == [11, 12, 21]
    assert "scene.jpg: annotations: expected one image with the file name 'scene.jpg', got 0" in err


def test_the_picture_may_go_to_stdout(demo_bundle: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    assert main(["caption", SCENE, "--bundle", str(demo_bundle), "--whole", "--save", "-"]) == 0
    out, err = capfdbinary.readouterr()
    with Image.open(io.BytesIO(out)) as drawn:
        assert (drawn.format, drawn.size) == ("PNG", (SIDE, SIDE))
    assert err.count(b"\n") == 1, "the caption, which is not mixed into the picture"


def test_the_picture_is_there_though_nobody_reads_the_captions(
    run: Run, demo_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def show(*_: object) -> None:
        raise BrokenPipeError

    monkeypatch.setattr("runtime.cli.caption_command.show", show)
    assert run("caption", SCENE, "--bundle", demo_bundle, "--save", tmp_path / "out.png") == (0, "", "")
    assert (tmp_path / "out.png").exists()


def test_a_bundle_that_cannot_be_used_is_exit_code_1(run: Run, tmp_path: Path) -> None:
    for command in (["caption", SCENE, "--bundle"], ["info"], ["verify"]):
        code, out, err = run(*command, tmp_path)
        assert (code, out) == (1, "")
        assert "no bundle there" in err
        assert err.count("\n") == 1


def test_info_says_what_the_bundle_is(run: Run, demo_bundle: Path) -> None:
    code, out, _ = run("info", demo_bundle)
    assert code == 0
    for part in ("demo", "16 x 16 patches of 14", "4 registers", "fp32", "onnxruntime"):
        assert part in out
    code, out, _ = run("info", demo_bundle, "--json")
    assert json.loads(out) == json.loads((demo_bundle / "manifest.json").read_text())


def test_verify_finds_what_changed(run: Run, bundle_copy: Callable[[], Path]) -> None:
    folder = bundle_copy()
    code, out, _ = run("verify", folder)
    assert code == 0
    assert "10 files are as built" in out
    captions = folder / "captions.jsonl"
    captions.write_text(captions.read_text().replace("red", "rad", 1))
    code, _, err = run("verify", folder)
    assert code == 1
    assert "captions.jsonl: altered" in err


@pytest.mark.parametrize("name", ["x" * 5000, "a/" * 4000, "a\0b", "\ud800"], ids=["long", "deep", "zero", "surrogate"])
@pytest.mark.parametrize(
    "command",
    [
        ["info", "NAME"],
        ["verify", "NAME"],
        ["trust", "NAME"],
        ["tune", "NAME"],
        ["tune", "BUNDLE", "--images", "NAME"],
        ["doctor", "--bundle", "NAME"],
        ["caption", "NAME", "--bundle", "BUNDLE"],
        ["caption", SCENE, "--bundle", "NAME"],
        ["caption", SCENE, "--bundle", "BUNDLE", "--regions", "NAME"],
        ["caption", SCENE, "--bundle", "BUNDLE", "--mask", "NAME"],
        ["caption", SCENE, "--bundle", "BUNDLE", "--save", "NAME.png"],
        ["caption", SCENE, SCENE, "--bundle", "BUNDLE", "--save", "NAME"],
        ["video", "NAME", "--bundle", "BUNDLE"],
        ["video", str(SAMPLE), "--bundle", "BUNDLE", "--jsonl", "NAME.jsonl"],
        ["video", str(SAMPLE), "--bundle", "BUNDLE", "--save", "NAME.mp4"],
        ["batch", "NAME", "--bundle", "BUNDLE", "--out", "FOLDER/out.jsonl"],
        ["batch", SCENE, "--bundle", "BUNDLE", "--out", "FOLDER/out.jsonl", "--regions", "NAME.json"],
        ["batch", SCENE, "--bundle", "BUNDLE", "--out", "NAME.jsonl"],
        ["push", "NAME", "owner/name"],
    ],
    ids=lambda command: "_".join(part.replace(SCENE, "SCENE").replace(str(SAMPLE), "SAMPLE") for part in command),
)
def test_a_name_that_no_file_can_have_is_one_line(
    run: Run, demo_bundle: Path, tmp_path: Path, command: list[str], name: str
) -> None:
    places = {"BUNDLE": str(demo_bundle), "NAME": name, "FOLDER": str(tmp_path)}
    arguments = command
    for place, value in places.items():
        arguments = [argument.replace(place, value) for argument in arguments]
    code, _, err = run(*arguments)
    assert code in (1, 2)
    assert len(err.splitlines()) == 1 or command[0] == "doctor"
    assert "Traceback" not in err
    assert command[0] == "batch" or list(tmp_path.iterdir()) == []


def test_regions_of_a_device_do_not_fill_the_memory(
    run: Run, demo_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runtime.cli.region_arguments._MAX_BYTES", 1 << 20)
    code, _, err = run("caption", SCENE, "--bundle", demo_bundle, "--regions", "/dev/zero")
    assert (code, "/dev/zero: expected at most 1048576 bytes" in err) == (2, True)


def test_an_interrupt_is_exit_code_130(run: Run, demo_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Captioner, "caption", interrupt)
    code, _, err = run("caption", SCENE, "--bundle", demo_bundle)
    assert code == 130
    assert err == "patchcaption: error: interrupted\n"


def test_an_interrupt_while_regions_are_read_is_exit_code_130(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> BinaryIO:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "open", interrupt)
    assert run("caption", SCENE, "--bundle", "b", "--regions", "r.json") == (
        130,
        "",
        "patchcaption: error: interrupted\n",
    )
