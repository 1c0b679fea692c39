"""The model repository: what is in it, what it replaces, and what it refuses."""

from __future__ import annotations

import filecmp
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from export import triton_repository
from patchcaption._commands import run_tool
from runtime.bundle import writing
from tests.children import run_child
from tests.conftest import ROOT


def made(bundle: Path, models: Path, *flags: str, name: str = "patchcaption") -> Any:
    """Make a model; return its configuration, as Triton reads it."""
    assert triton_repository.main([str(bundle), "--out", str(models), "--name", name, *flags]) == 0
    text = (models / name / "config.pbtxt").read_text()
    return text_format.Parse(text, model_config_pb2.ModelConfig())


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def parameters(config: Any) -> dict[str, str]:
    return {name: value.string_value for name, value in config.parameters.items()}


def test_the_model_has_all_that_the_server_reads(
    demo_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = made(demo_bundle, tmp_path / "models")
    model = tmp_path / "models" / "patchcaption"
    assert files(model) == {"config.pbtxt", "1/model.py", *(f"1/bundle/{name}" for name in files(demo_bundle))}
    assert not filecmp.dircmp(demo_bundle, model / "1" / "bundle").diff_files
    assert (model / "1" / "model.py").read_bytes() == (ROOT / "export" / "triton_server" / "model.py").read_bytes()
    assert (config.backend, config.max_batch_size) == ("python", 8)
    assert [(one.name, one.optional) for one in config.input] == [
        ("IMAGE", False),
        ("REGIONS", True),
        ("OPTIONS", True),
    ]
    assert [one.name for one in config.output] == ["CAPTIONS"]
    (group,) = config.instance_group
    assert (group.count, group.kind, list(group.gpus)) == (1, group.KIND_CPU, [])
    assert parameters(config) == {"bundle": "bundle", "backend": "auto", "precision": "fp32", "fit": "stretch"}
    said = capsys.readouterr().out
    assert said.startswith(f"{model}: a model for Triton; tritonserver --model-repository {tmp_path}/models")


def test_options_are_in_the_configuration(demo_bundle: Path, tmp_path: Path) -> None:
    config = made(
        demo_bundle,
        tmp_path,
        *("--instances", "3", "--max-batch-size", "4", "--max-queue-delay-us", "2000", "--max-queue-size", "16"),
        *("--backend", "openvino", "--precision", "bf16", "--fit", "crop", "--threads", "2"),
        *("--bundle-path", '/srv/the "best" \\ bündle'),
        name="captions-2.b",
    )
    assert files(tmp_path / "captions-2.b") == {"config.pbtxt", "1/model.py"}
    assert (config.max_batch_size, config.instance_group[0].count) == (4, 3)
    assert config.dynamic_batching.max_queue_delay_microseconds == 2000
    assert config.dynamic_batching.default_queue_policy.max_queue_size == 16
    assert parameters(config) == {
        "bundle": '/srv/the "best" \\ bündle',
        "backend": "openvino",
        "precision": "bf16",
        "fit": "crop",
        "threads": "2",
    }


@pytest.mark.parametrize("flags", [("--backend", "ort-cuda"), ("--backend", "ort-cuda", "--kind", "gpu")])
def test_on_gpus_instances_are_on_the_first(demo_bundle: Path, tmp_path: Path, flags: tuple[str, ...]) -> None:
    (group,) = made(demo_bundle, tmp_path, *flags, "--instances", "2").instance_group
    assert (group.count, group.kind, list(group.gpus)) == (2, group.KIND_GPU, [0])


@pytest.mark.parametrize(
    ("flags", "error"),
    [
        (["--kind", "gpu"], "--kind gpu: the backend cpu runs on the CPU"),
        (["--kind", "cpu", "--backend", "tensorrt"], "--kind cpu: the backend tensorrt runs on the GPU"),
        (["--name", "../models"], "--name '../models': expected letters"),
        (["--name", ".hidden"], "--name '.hidden': expected letters"),
        (["--bundle-path", "engines/demo"], "--bundle-path 'engines/demo': expected an absolute path"),
        (["--bundle-path", "/srv/a\nb"], "expected an absolute path of the server"),
        (["--instances", "129"], "--instances: expected at most 128, got 129"),
        (["--max-queue-delay-us", "-1"], "--max-queue-delay-us: expected 0 to 10000000, got -1"),
    ],
)
def test_what_cannot_be_is_refused_and_nothing_written(
    demo_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], error: str
) -> None:
    assert triton_repository.main([str(demo_bundle), "--out", str(tmp_path / "models"), *flags]) == 1
    assert error in capsys.readouterr().err
    assert not (tmp_path / "models").exists()


def test_a_damaged_bundle_is_refused(bundle_copy: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = bundle_copy()
    (bundle / "tokenizer.json").write_text("{}")
    assert triton_repository.main([str(bundle), "--out", str(tmp_path / "models")]) == 1
    assert "tokenizer.json: truncated" in capsys.readouterr().err
    assert not (tmp_path / "models").exists()


def test_a_model_of_ours_is_replaced_and_those_beside_it_stay(demo_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "other" / "1").mkdir(parents=True)
    made(demo_bundle, tmp_path)
    (tmp_path / "patchcaption" / "1" / "__pycache__").mkdir()  # of the server
    assert made(demo_bundle, tmp_path, "--instances", "2").instance_group[0].count == 2
    assert {path.name for path in tmp_path.iterdir()} == {"other", "patchcaption"}
    assert not (tmp_path / "patchcaption" / "1" / "__pycache__").exists()


def _of_another(model: Path) -> None:
    shutil.rmtree(model / "1")
    (model / "config.pbtxt").write_text('platform: "onnxruntime_onnx"')


def _a_file(model: Path) -> None:
    shutil.rmtree(model)
    model.write_text("notes")


def _photos(model: Path) -> None:
    shutil.rmtree(model)
    (model / "photos").mkdir(parents=True)


@pytest.mark.parametrize(
    ("spoil", "error"),
    [
        (_of_another, "config.pbtxt would be lost"),
        (lambda model: (model / "2").mkdir(), "2 is not of the model"),
        (lambda model: (model / "1" / "notes.txt").touch(), "1/notes.txt is not of the model"),
        (_a_file, "no model of ours"),
        (_photos, "photos would be lost"),
    ],
)
def test_what_is_not_of_ours_is_never_replaced(
    demo_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], spoil: Any, error: str
) -> None:
    made(demo_bundle, tmp_path)
    model = tmp_path / "patchcaption"
    spoil(model)
    before = files(tmp_path)
    assert triton_repository.main([str(demo_bundle), "--out", str(tmp_path)]) == 1
    assert error in capsys.readouterr().err
    assert files(tmp_path) == before


def test_a_copy_that_fails_leaves_what_was_there(
    demo_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made(demo_bundle, tmp_path)
    before = (tmp_path / "patchcaption" / "config.pbtxt").read_text()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shutil, "copyfile", full)
    assert triton_repository.main([str(demo_bundle), "--out", str(tmp_path), "--instances", "2"]) == 1
    assert "is the disk full?" in capsys.readouterr().err
    assert (tmp_path / "patchcaption" / "config.pbtxt").read_text() == before
    assert [path.name for path in tmp_path.iterdir()] == ["patchcaption"]


def test_an_interrupted_copy_leaves_nothing(demo_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(shutil, "copyfile", interrupt)
    assert triton_repository.main([str(demo_bundle), "--out", str(tmp_path / "models")]) == 128 + signal.SIGTERM
    assert list((tmp_path / "models").iterdir()) == []


@pytest.mark.slow
def test_a_copy_that_is_killed_leaves_nothing_that_the_server_would_take_for_a_model(
    demo_bundle: Path, tmp_path: Path
) -> None:
    made(demo_bundle, tmp_path / "models")
    kill = """
        import os, shutil, signal, sys
        shutil.copyfile = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
        from export import triton_repository
        triton_repository.main(sys.argv[1:])
    """
    done = run_child(kill, demo_bundle, "--out", tmp_path / "models")
    assert done.returncode == -signal.SIGKILL
    assert [path.name for path in (tmp_path / "models").iterdir()] == ["patchcaption"]
    assert any(path.name.startswith(".models.building-") for path in tmp_path.iterdir())
    made(demo_bundle, tmp_path / "models")
    assert {path.name for path in tmp_path.iterdir() if path.name.startswith(".")} == set()


def test_a_repository_on_a_disk_of_its_own_is_written_within(
    demo_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    places, building_site = list[Path](), writing._building_site

    def noted(place: Path) -> Any:
        places.append(place)
        return building_site(place)

    monkeypatch.setattr(writing, "_building_site", noted)
    made(demo_bundle, tmp_path / "models")
    monkeypatch.setattr(os, "access", lambda *_: False)
    made(demo_bundle, tmp_path / "models")
    assert places == [tmp_path / "models", tmp_path / "models" / "patchcaption"]


@pytest.mark.slow
def test_it_is_a_command_of_patchcaption_and_a_script(demo_bundle: Path, tmp_path: Path) -> None:
    flags = [str(demo_bundle), "--bundle-path", "/srv/demo", "--out"]
    assert run_tool("triton-repository", [*flags, str(tmp_path / "one")]) == 0
    script = [sys.executable, str(ROOT / "export" / "triton_repository.py"), *flags, str(tmp_path / "other")]
    subprocess.run(script, check=True, cwd=tmp_path, env={"PATH": "/usr/bin:/bin"})
    assert files(tmp_path / "one") == files(tmp_path / "other")


def test_a_bundle_that_is_not_there_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert triton_repository.main([str(tmp_path / "nowhere"), "--out", str(tmp_path / "models")]) == 1
    assert capsys.readouterr().err.count("\n") == 1
