"""The backend that "auto" stands for: the one measured to be fastest while that holds, else the first of an order."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

from runtime import BackendError, Captioner
from runtime.backends import EngineReport, open_backend, selection
from runtime.backends.base import BindableEngine
from runtime.backends.registry import BackendName
from runtime.backends.selection import Selection, measurements_file, save_measurement, select_backend
from runtime.bundle import MANIFEST, Bundle, DecoderConfig, EngineFiles
from runtime.bundle.graph_io import present_names
from runtime.cli.main import main
from runtime.doctor import autotune
from tests.doubles import RecordingBackend

UNMEASURED = Selection("cpu", "by order: not measured here")
MEASURED = Selection("openvino", "measured on this machine", is_measured=True)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder


@pytest.fixture
def bundle(demo_bundle: Path) -> Bundle:
    return Bundle(demo_bundle, verify=False)


def test_where_nothing_was_measured_auto_follows_a_fixed_order(bundle: Bundle) -> None:
    assert select_backend(bundle) == select_backend() == UNMEASURED
    assert select_backend(bundle, "bf16") == Selection("openvino", "by order: it alone has bf16")
    assert open_backend("auto", bundle=bundle).name.startswith("onnxruntime ")


def test_what_was_measured_is_what_auto_takes(bundle: Bundle, cache: Path) -> None:
    assert save_measurement(bundle, "fp32", None, {"cpu": 2.0, "openvino": 1.0}) == "openvino"
    assert select_backend(bundle) == MEASURED
    assert [path.name for path in (cache / "patchcaption").iterdir()] == ["measurements.json"]
    assert save_measurement(bundle, "fp32", None, {"cpu": 1.0, "openvino": 2.0}) == "cpu"
    assert select_backend(bundle) == Selection("cpu", "measured on this machine", is_measured=True)


def test_auto_opens_the_measured_backend(demo_bundle: Path, bundle: Bundle) -> None:
    pytest.importorskip("openvino")
    save_measurement(bundle, "fp32", None, {"cpu": 2.0, "openvino": 1.0})
    with Captioner.load(demo_bundle) as captioner:
        assert captioner.backend.name.startswith("openvino ")
    with Captioner.load(demo_bundle, "cpu") as captioner:
        assert captioner.backend.name.startswith("onnxruntime ")


def other_bundle(bundle: Bundle, _: pytest.MonkeyPatch) -> None:
    path = bundle.path(MANIFEST)
    path.write_text(path.read_text().replace("demo", "omed", 1))


def other_versions(_: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selection, "package_version", lambda name: "0.1" if name == "openvino" else "0.2")


def other_cpu(_: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selection, "cpu_name", lambda: "Z80")


def other_cores(_: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selection, "usable_cores", lambda: 1000)


@pytest.mark.parametrize("change", [other_bundle, other_versions, other_cpu, other_cores])
def test_a_measurement_does_not_hold_for_another(
    bundle_copy: Callable[[], Path],
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[Bundle, pytest.MonkeyPatch], None],
) -> None:
    bundle = Bundle(bundle_copy(), verify=False)
    save_measurement(bundle, "fp32", None, {"cpu": 2.0, "openvino": 1.0})
    assert select_backend(bundle) == MEASURED
    change(bundle, monkeypatch)
    assert select_backend(bundle) == UNMEASURED


def test_nor_for_other_options(bundle: Bundle) -> None:
    save_measurement(bundle, "fp32", 2, {"cpu": 2.0, "openvino": 1.0})
    assert select_backend(bundle, threads=2) == MEASURED
    assert select_backend(bundle) == select_backend(bundle, threads=1) == UNMEASURED
    assert select_backend(bundle, "bf16", threads=2).reason.startswith("by order")


def test_several_measurements_are_kept_together(bundle: Bundle) -> None:
    for threads in (1, 2):
        save_measurement(bundle, "fp32", threads, {"cpu": 2.0, "openvino": 1.0})
    assert select_backend(bundle, threads=1) == select_backend(bundle, threads=2) == MEASURED


@pytest.mark.parametrize("text", ["", "{", "[]", '{"measurements": {"key": {"backend": "tpu"}}}', "\udcff"])
def test_a_broken_file_counts_as_none_and_is_replaced(bundle: Bundle, text: str) -> None:
    measurements_file().parent.mkdir(parents=True)
    measurements_file().write_bytes(text.encode("utf-8", "surrogateescape"))
    assert select_backend(bundle) == UNMEASURED
    save_measurement(bundle, "fp32", None, {"cpu": 2.0, "openvino": 1.0})
    assert select_backend(bundle) == MEASURED


def test_a_backend_that_is_not_known_is_not_taken_from_the_file(bundle: Bundle) -> None:
    save_measurement(bundle, "fp32", None, {"cpu": 2.0, "openvino": 1.0})
    measurements_file().write_text(measurements_file().read_text().replace('"backend": "openvino"', '"backend": "tpu"'))
    assert select_backend(bundle) == UNMEASURED


def test_a_cache_that_cannot_be_written_is_one_line_and_loads_as_before(bundle: Bundle, cache: Path) -> None:
    cache.write_text("a file where the folder should be")
    with pytest.raises(
        BackendError, match="the measurement of openvino cannot be saved: .*; set XDG_CACHE_HOME to a folder"
    ):
        save_measurement(bundle, "fp32", None, {"cpu": 2.0, "openvino": 1.0})
    assert select_backend(bundle) == UNMEASURED


def test_without_the_variable_the_file_lies_in_the_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for value in ("", "not/absolute"):
        monkeypatch.setenv("XDG_CACHE_HOME", value)
        assert measurements_file() == tmp_path / ".cache" / "patchcaption" / "measurements.json"


@dataclass
class Clock:
    """A clock that goes on only where something takes time."""

    seconds: float = 0.0

    def __call__(self) -> float:
        return self.seconds


@dataclass
class FakeBackend:
    """A backend whose engines take a fixed time; the first run of each takes ten times as long."""

    name: str
    clock: Clock
    config: DecoderConfig
    seconds: Mapping[str, float]
    open_engines: list[FakeEngine] = field(default_factory=list)
    device = torch.device("cpu")
    needs_warm_up = False

    def open(self, files: EngineFiles, concurrency: int = 1) -> FakeEngine:  # noqa: ARG002
        engine = FakeEngine(self, self.seconds[files.graph.stem])
        self.open_engines.append(engine)
        return engine


@dataclass
class FakeEngine:
    backend: FakeBackend
    seconds: float
    runs: int = 0
    bindable: BindableEngine | None = None

    def run(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        self.backend.clock.seconds += self.seconds * (1 if self.runs else 10)
        self.runs += 1
        rows, config = len(next(iter(inputs.values()))), self.backend.config
        entry = torch.zeros(rows, config.num_heads, 1, config.head_dim)
        present = dict.fromkeys(present_names(config.num_layers), entry)
        return {"next_token_ids": torch.zeros(rows, dtype=torch.int64), "log_probs": torch.zeros(rows), **present}

    def report(self) -> EngineReport:
        return EngineReport("nothing")

    def close(self) -> None:
        self.backend.open_engines.remove(self)


@pytest.fixture
def fakes(bundle: Bundle) -> dict[BackendName, FakeBackend]:
    clock, config = Clock(), bundle.manifest.decoder
    return {
        "cpu": FakeBackend("one", clock, config, {"backbone": 0.5, "decoder": 0.01}),
        "openvino": FakeBackend("other", clock, config, {"backbone": 0.25, "decoder": 0.02}),
    }


def test_each_backend_is_timed_by_its_best_run_after_the_first(
    bundle: Bundle, fakes: dict[BackendName, FakeBackend]
) -> None:
    timings = autotune.measure(bundle, fakes, fakes["cpu"].clock)
    expected: dict[BackendName, tuple[str, int, int]] = {
        "cpu": ("one", 500, 12 * 10),
        "openvino": ("other", 250, 12 * 20),
    }
    for name, (full_name, backbone, captions) in expected.items():
        assert timings[name].name == full_name
        assert timings[name].backbone == pytest.approx(backbone)
        assert timings[name].decoding == {1: pytest.approx(captions), 16: pytest.approx(captions)}
        assert timings[name].total == pytest.approx(backbone + 2 * captions)
    assert not any(fake.open_engines for fake in fakes.values()), "engines were left open"


def test_prompts_are_timed_with_the_captions_after_them(prompted_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(autotune, "_SECONDS", 0.0)
    backend, bundle = RecordingBackend(), Bundle(prompted_bundle)
    timing = autotune.measure(bundle, {"cpu": backend})["cpu"]
    assert set(timing.decoding) == {1, 16}
    runs = {name: len(engine.runs) for name, engine in backend.engines.items()}
    assert runs["mapping"] == runs["prefill"] == 2 * runs["backbone"], "once for each number of captions"
    assert runs["decoder"] == (12 - 1) * runs["prefill"], "the first token comes of the prompt"


def test_tune_saves_the_faster_backend_and_says_so(
    bundle: Bundle,
    fakes: dict[BackendName, FakeBackend],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def open_fakes(*_: object) -> Iterator[object]:
        return iter((fakes, {}))

    clock = fakes["cpu"].clock
    monkeypatch.setattr("runtime.cli.machine_commands.open_all", open_fakes)
    monkeypatch.setattr("runtime.cli.machine_commands.measure", partial(autotune.measure, clock=clock))
    assert main(["tune", str(bundle.folder)]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    lines = out.splitlines()
    assert lines[1].split() == ["one", "500.0", "120.0", "120.0"]
    assert lines[2].split() == ["other", "250.0", "240.0", "240.0"]
    assert lines[3] == f"auto is openvino for {bundle.folder} in fp32 from now on ({measurements_file()})"
    assert select_backend(bundle) == MEASURED
    (saved,) = json.loads(measurements_file().read_text())["measurements"].values()
    assert saved["milliseconds"] == {"cpu": pytest.approx(740), "openvino": pytest.approx(730)}
    assert main(["info", str(bundle.folder)]) == 0
    assert "backend     auto is openvino (measured on this machine)\n" in capsys.readouterr().out


def test_info_says_that_nothing_was_measured(demo_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", str(demo_bundle)]) == 0
    assert "backend     auto is cpu (by order: not measured here)\n" in capsys.readouterr().out


def test_backends_that_are_not_there_are_left_out_and_named(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    usable, refused = autotune.open_all(bundle, "fp32")
    assert list(usable) == ["cpu"]
    assert refused["openvino"].startswith("OpenVINO cannot be imported")
    with pytest.raises(BackendError, match="no backend can be used: precision 'bf16': .*; OpenVINO cannot be imported"):
        autotune.open_all(bundle, "bf16")
