"""`patchcaption tune`: the table, the choice that is kept, JSON, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from runtime import Captioner
from runtime.backends import select_backend
from runtime.backends.measurements import measurements_file, read_measurement
from runtime.bundle import Bundle
from runtime.cli.main import main
from runtime.cli.tune_table import choice_lines, table_lines, tuning_as_json
from runtime.doctor.tuning import KernelRow, TunedRow, Tuning, rounds
from runtime.doctor.tuning.combinations import Combination
from runtime.doctor.tuning.quality import Quality
from runtime.memory import kernel_names

SAME = Quality(1.0, 1.0)
ROWS = (
    TunedRow(Combination("b", "cpu", "fp32"), "fp32", 300.0, {1: 40.0, 16: 60.0}, SAME),
    TunedRow(Combination("b", "cpu", "fp32", 1), "fp32", 600.0, {1: 80.0, 16: 120.0}, SAME),
    TunedRow(Combination("b", "openvino", "bf16"), "fp32", 100.0, {1: 12.5, 16: 12.5}, Quality(0.995, 0.99991)),
    TunedRow(Combination("my b8", "cpu", "fp32"), "int8", 50.0, {1: 5.0, 16: 5.0}, Quality(0.95, 0.99)),
)
KERNELS = (KernelRow("b", "avx512", {1: 1.0, 16: 4.0}), KernelRow("b", "torch", {1: 0.5, 16: 2.0}))
TUNING = Tuning(ROWS, KERNELS, ("no time was left",), 4, 236, 0.99)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_the_table_has_a_row_for_each_combination_and_each_kernel() -> None:
    assert list(table_lines(TUNING, "drawn pictures")) == [
        "milliseconds, the shortest of several runs; quality as compared with cpu in fp32",
        "on drawn pictures: 4 of them, 236 captions",
        "bundle  graphs  backend   precision  threads  backbone  1 caption  16 captions    sum  times as fast  "
        "captions the same  cosine of tokens",
        "b       fp32    cpu       fp32       all         300.0       40.0         60.0  400.0           1.00  "
        "           100.0%           1.00000",
        "b       fp32    cpu       fp32       1           600.0       80.0        120.0  800.0           0.50  "
        "           100.0%           1.00000",
        "b       fp32    openvino  bf16       all         100.0       12.5         12.5  125.0           3.20  "
        "            99.5%           0.99991",
        "my b8   int8    cpu       fp32       all          50.0        5.0          5.0   60.0           6.67  "
        "            95.0%           0.99000",
        "",
        "bundle  projection by  1 region  16 regions",
        "b       avx512             1.00        4.00",
        "b       torch              0.50        2.00",
    ]


def test_the_choice_says_how_it_is_used() -> None:
    assert list(choice_lines(TUNING)) == [
        "chosen: b on openvino in bf16, projection by torch: 3.2 times as fast, 99.5% of captions the same",
        "use it: patchcaption caption IMAGE --bundle b --precision auto",
        "        Captioner.load('b', precision=\"auto\")",
    ]
    assert list(choice_lines(Tuning(ROWS, (), (), 4, 236, 0.95))) == [
        "chosen: my b8 on cpu in fp32: 6.7 times as fast, 95.0% of captions the same",
        "use it: patchcaption caption IMAGE --bundle 'my b8'",
        "        Captioner.load('my b8')",
    ]


def test_json_has_all_of_it() -> None:
    values = json.loads(json.dumps(tuning_as_json(TUNING)))
    assert values["chosen"] == {
        **{"bundle": "b", "backend": "openvino", "precision": "bf16", "threads": None, "kernels": "torch"}
    }
    assert values["rows"][2] == {
        **{"bundle": "b", "backend": "openvino", "precision": "bf16", "threads": None, "graphs": "fp32"},
        **{"backbone_ms": 100.0, "decoding_ms": {"1": 12.5, "16": 12.5}, "speedup": 3.2},
        **{"agreement": 0.995, "cosine": 0.99991},
    }
    assert values["kernels"][1] == {"bundle": "b", "kernels": "torch", "projection_ms": {"1": 0.5, "16": 2.0}}
    assert (values["images"], values["captions"], values["min_agreement"]) == (4, 236, 0.99)
    assert values["left_out"] == ["no time was left"]


@pytest.mark.slow
def test_a_bundle_is_measured_and_the_choice_is_what_auto_takes(
    demo_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(rounds, "_SECONDS", 0.0)
    images = tmp_path / "images"
    images.mkdir()
    (images / "scene.jpg").write_bytes(Path("export/demo/sample/scene.jpg").read_bytes())
    assert main(["tune", str(demo_bundle), "--images", str(images), "--json"]) == 0
    out, err = capsys.readouterr()
    values = json.loads(out)
    first, *others = values["rows"]
    assert (first["backend"], first["precision"], first["threads"], first["graphs"]) == ("cpu", "fp32", None, "fp32")
    assert (first["speedup"], first["agreement"], first["cosine"]) == (1.0, 1.0, pytest.approx(1, abs=1e-6))
    for row in others:
        assert row["agreement"] > 0.9, "a caption of ten may be nearly another in bfloat16"
        assert row["cosine"] > 0.999
    assert (values["images"], values["captions"]) == (1, 59)
    bundle = Bundle(demo_bundle, verify=False)
    assert [row["kernels"] for row in values["kernels"]] == list(kernel_names(torch.device("cpu")))
    assert "patchcaption: note: comparing the captions of image 1 of 1\n" in err

    chosen, kept = values["chosen"], select_backend(bundle, "auto")
    assert kept.is_measured
    assert (kept.backend, kept.precision, kept.threads, kept.kernels) == (
        *(chosen["backend"], chosen["precision"], chosen["threads"]),
        chosen["kernels"],
    )
    measurement = read_measurement(bundle)
    assert measurement is not None
    assert len(measurement.runs) == len(values["rows"])
    with Captioner.load(demo_bundle, precision="auto") as captioner:
        assert captioner.caption(images / "scene.jpg", [[276, 174, 507, 399]])[0].text == (
            "a large striped red triangle"
        )
    assert main(["caption", str(images / "scene.jpg"), "--bundle", str(demo_bundle), "--precision", "auto"]) == 0
    assert "five shapes on a checked white background" in capsys.readouterr().out


def test_one_precision_alone_is_measured_in_text(
    demo_bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(rounds, "_SECONDS", 0.0)
    assert main(["tune", str(demo_bundle), "--precision", "fp32", "--seconds", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].startswith("on drawn pictures (--images for your own): ")
    assert not [line for line in lines if " bf16 " in line], "one of the kernels is called avx512bf16"
    assert f"use it: patchcaption caption IMAGE --bundle {demo_bundle}" in lines
    assert lines[-1] == f"kept in {measurements_file()}"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--seconds", "0"], "--seconds: expected a number from 1 to 3600, got 0.0"),
        (["--agreement", "99"], "--agreement: expected a number from 0 to 1, got 99.0"),
        (["--images", "lost"], "lost"),
        (["--images", "{empty}"], "no images in it"),
    ],
)
def test_mistakes_are_one_line(
    demo_bundle: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    expected: str,
) -> None:
    arguments = [argument.replace("{empty}", str(tmp_path)) for argument in arguments]
    assert main(["tune", str(demo_bundle), *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("patchcaption: error: ")
    assert expected in line
    assert not measurements_file().exists()


def test_bundles_of_different_models_are_refused(
    demo_bundle: Path, viecap_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["tune", str(demo_bundle), str(viecap_bundle)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{viecap_bundle}: its decoder is viecap, " in line
    assert "only bundles of one checkpoint in several precisions can be compared" in line
