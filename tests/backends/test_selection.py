"""What "auto" stands for: the fastest of what was measured while that holds, else the first of an order."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from runtime import BackendError, Captioner, OptionError
from runtime.backends import Selection, measurements, open_backend, select_backend
from runtime.backends.measurements import MeasuredRun, Measurement, fastest, measurements_file, save_measurement
from runtime.bundle import MANIFEST, Bundle
from runtime.cli.main import main
from runtime.memory import kernel_names
from runtime.memory.kernels import KernelVariant
from runtime.memory.torch_kernels import TorchKernels

UNMEASURED = Selection("cpu", "by order: not measured here")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder


@pytest.fixture
def bundle(demo_bundle: Path) -> Bundle:
    return Bundle(demo_bundle, verify=False)


def run(
    backend: str, milliseconds: float, precision: str = "fp32", threads: int | None = None, agreement: float = 1.0
) -> dict[str, Any]:
    return {"backend": backend, "precision": precision, "threads": threads} | {
        "milliseconds": milliseconds,
        "agreement": agreement,
    }


OPENVINO_IS_FASTER = [run("cpu", 2.0), run("openvino", 1.0)]


def keep(bundle: Bundle, *runs: dict[str, Any], min_agreement: float = 0.99, kernels: str | None = None) -> None:
    save_measurement(
        bundle,
        Measurement(
            bundle="demo",
            runs=[MeasuredRun.model_validate(one) for one in runs],
            min_agreement=min_agreement,
            kernels=kernels,
        ),
    )


def chosen(bundle: Bundle, *arguments: Any) -> tuple[str, str, int | None, bool]:
    """Return the backend, the precision and the threads of a selection, and whether they were measured."""
    selection = select_backend(bundle, *arguments)
    return selection.backend, selection.precision, selection.threads, selection.is_measured


def test_where_nothing_was_measured_auto_follows_a_fixed_order(bundle: Bundle) -> None:
    assert select_backend(bundle) == select_backend() == select_backend(bundle, "auto") == UNMEASURED
    assert select_backend(bundle, "bf16") == Selection("openvino", "by order: it alone has bf16", precision="bf16")
    assert select_backend(bundle, "auto", 2, "openvino") == Selection("openvino", "asked for", threads=2)
    assert open_backend("auto", bundle=bundle).name.startswith("onnxruntime ")


def test_what_was_measured_is_what_auto_takes(bundle: Bundle, cache: Path) -> None:
    keep(bundle, *OPENVINO_IS_FASTER, kernels="torch")
    assert select_backend(bundle) == Selection(
        "openvino", "measured on this machine", is_measured=True, kernels="torch", milliseconds=1.0
    )
    assert [path.name for path in (cache / "patchcaption").iterdir()] == ["measurements.json"]
    keep(bundle, run("cpu", 1.0), run("openvino", 2.0))
    assert select_backend(bundle) == Selection(
        "cpu", "measured on this machine", is_measured=True, kernels=None, milliseconds=1.0
    )


ALL = (
    run("cpu", 100),
    run("cpu", 80, threads=1),
    run("openvino", 90),
    run("openvino", 40, "bf16"),
    run("openvino", 30, "bf16", threads=1),
)


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ((), ("cpu", "fp32", 1, True)),
        (("fp32", None), ("cpu", "fp32", 1, True)),
        (("fp32", 1), ("cpu", "fp32", 1, True)),
        (("fp32", 3), ("cpu", "fp32", 3, False)),
        (("bf16", None), ("openvino", "bf16", 1, True)),
        (("auto", None), ("openvino", "bf16", 1, True)),
        (("auto", 1), ("openvino", "bf16", 1, True)),
        (("auto", 3), ("cpu", "fp32", 3, False)),
        (("fp32", None, "openvino"), ("openvino", "fp32", None, False)),
        (("auto", None, "openvino"), ("openvino", "bf16", None, False)),
        (("auto", None, "cpu"), ("cpu", "fp32", None, False)),
        (("auto", 3, "openvino"), ("openvino", "fp32", 3, False)),
    ],
)
def test_auto_is_the_fastest_of_what_agrees_with_what_is_asked_for(
    bundle: Bundle, asked: tuple[Any, ...], expected: tuple[str, str, int | None, bool]
) -> None:
    keep(bundle, *ALL)
    assert chosen(bundle, *asked) == expected


def test_what_changes_too_many_captions_is_not_taken(bundle: Bundle) -> None:
    runs = (run("cpu", 100), run("openvino", 40, "bf16", agreement=0.98))
    keep(bundle, *runs, min_agreement=0.99)
    assert chosen(bundle, "auto") == ("cpu", "fp32", None, True)
    assert chosen(bundle, "bf16") == ("openvino", "bf16", None, False), "it was asked for"
    keep(bundle, *runs, min_agreement=0.98)
    assert chosen(bundle, "auto") == ("openvino", "bf16", None, True)


@pytest.mark.parametrize(
    ("milliseconds", "expected"), [((104.9, 100.0), 0), ((105.1, 100.0), 1), ((120.0, 104.0, 100.0), 1), ((), None)]
)
def test_of_nearly_equal_times_the_first_is_taken(milliseconds: tuple[float, ...], expected: int | None) -> None:
    runs = [MeasuredRun(backend="cpu", precision="fp32", milliseconds=ms) for ms in milliseconds]
    assert fastest(runs) is (None if expected is None else runs[expected])


def test_auto_opens_the_measured_backend_in_the_measured_precision(demo_bundle: Path, bundle: Bundle) -> None:
    pytest.importorskip("openvino")
    keep(bundle, *OPENVINO_IS_FASTER)
    for precision in ("fp32", "auto"):
        with Captioner.load(demo_bundle, precision=precision) as captioner:
            assert captioner.backend.name.startswith("openvino ")
    with Captioner.load(demo_bundle, "cpu") as captioner:
        assert captioner.backend.name.startswith("onnxruntime ")


def test_the_measured_kernels_project(demo_bundle: Path, bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[object] = []
    for kernels in (TorchKernels, KernelVariant):
        project = kernels.project

        def record(self: Any, *arguments: Any, _project: Any = project) -> Any:
            used.append(getattr(self, "_variant", "torch"))
            return _project(self, *arguments)

        monkeypatch.setattr(kernels, "project", record)
    vectors = bundle.manifest.backbone.output_dim * [0.1]
    for name in kernel_names(open_backend("cpu").device):
        keep(bundle, run("cpu", 1.0), kernels=name)
        with Captioner.load(demo_bundle) as captioner:
            used.clear()
            captioner.project([vectors])
            assert used == [name]
    keep(bundle, run("cpu", 1.0), kernels="of another machine")
    with Captioner.load(demo_bundle) as captioner:
        assert captioner.project([vectors]).isfinite().all()


def other_bundle(bundle: Bundle, _: pytest.MonkeyPatch) -> None:
    path = bundle.path(MANIFEST)
    path.write_text(path.read_text().replace("demo", "omed", 1))


def other_versions(_: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measurements, "package_version", lambda name: "0.1" if name == "openvino" else "0.2")


def other_cpu(_: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measurements, "cpu_name", lambda: "Z80")


def other_cores(_: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measurements, "usable_cores", lambda: 1000)


@pytest.mark.parametrize("change", [other_bundle, other_versions, other_cpu, other_cores])
def test_a_measurement_does_not_hold_for_another(
    bundle_copy: Callable[[], Path],
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[Bundle, pytest.MonkeyPatch], None],
) -> None:
    bundle = Bundle(bundle_copy(), verify=False)
    keep(bundle, *OPENVINO_IS_FASTER)
    assert select_backend(bundle).backend == "openvino"
    change(bundle, monkeypatch)
    assert select_backend(bundle) == UNMEASURED


def test_measurements_of_several_bundles_are_kept_together(bundle: Bundle, bundle_copy: Callable[[], Path]) -> None:
    other = Bundle(bundle_copy(), verify=False)
    other_bundle(other, pytest.MonkeyPatch())
    keep(bundle, *OPENVINO_IS_FASTER)
    keep(other, run("cpu", 1.0, threads=1))
    assert (chosen(bundle)[0], chosen(other)[0]) == ("openvino", "cpu")


BAD_RUN = {"backend": "tpu", "precision": "fp32", "milliseconds": 1.0}


@pytest.mark.parametrize(
    "text",
    [
        *("", "{", "[]", "\udcff"),
        json.dumps({"measurements": {"key": {"bundle": "b", "runs": [BAD_RUN]}}}),
        json.dumps({"measurements": {"key": {"backend": "cpu", "bundle": "b", "milliseconds": {"cpu": 1.0}}}}),
    ],
)
def test_a_broken_file_counts_as_none_and_is_replaced(bundle: Bundle, text: str) -> None:
    measurements_file().parent.mkdir(parents=True)
    measurements_file().write_bytes(text.encode("utf-8", "surrogateescape"))
    assert select_backend(bundle) == UNMEASURED
    keep(bundle, *OPENVINO_IS_FASTER)
    assert select_backend(bundle).backend == "openvino"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ('"backend": "openvino"', '"backend": "tpu"'),
        ('"precision": "fp32"', '"precision": "fp8"'),
        ('"threads": null', '"threads": 0'),
        ('"milliseconds": 1.0', '"milliseconds": -1.0'),
    ],
)
def test_what_is_not_known_is_not_taken_from_the_file(bundle: Bundle, before: str, after: str) -> None:
    keep(bundle, *OPENVINO_IS_FASTER)
    text = measurements_file().read_text()
    assert before in text
    measurements_file().write_text(text.replace(before, after))
    assert select_backend(bundle) == UNMEASURED


def test_a_cache_that_cannot_be_written_is_one_line_and_loads_as_before(bundle: Bundle, cache: Path) -> None:
    cache.write_text("a file where the folder should be")
    with pytest.raises(BackendError, match="the measurement of .* cannot be saved: .*; set XDG_CACHE_HOME to a folder"):
        keep(bundle, *OPENVINO_IS_FASTER)
    assert select_backend(bundle) == UNMEASURED


def test_without_the_variable_the_file_lies_in_the_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for value in ("", "not/absolute"):
        monkeypatch.setenv("XDG_CACHE_HOME", value)
        assert measurements_file() == tmp_path / ".cache" / "patchcaption" / "measurements.json"


def test_names_and_numbers_that_cannot_be_meant_are_refused(bundle: Bundle) -> None:
    with pytest.raises(BackendError, match="backend 'tpu': expected one of 'auto', 'cpu', .*"):
        select_backend(bundle, name="tpu")
    with pytest.raises(OptionError, match="threads: expected a whole number from 1 to 512, got 0"):
        select_backend(bundle, threads=0)
    with pytest.raises(BackendError, match="precision 'int4': with the backend 'cpu' expected fp32"):
        open_backend("auto", precision="int4", bundle=bundle)  # type: ignore[arg-type]


def test_info_says_what_auto_is_and_why(bundle: Bundle, demo_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", str(demo_bundle)]) == 0
    assert "backend     auto is cpu (by order: not measured here)\n" in capsys.readouterr().out
    keep(bundle, *ALL)
    assert main(["info", str(demo_bundle)]) == 0
    out = capsys.readouterr().out
    assert "backend     auto is cpu (measured on this machine)\n" in out
    assert "faster      --precision auto: openvino in bf16, measured to be 2.7 times as fast\n" in out
