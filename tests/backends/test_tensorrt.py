"""TensorRT from graph to caption, on a double of its Python package in two versions.

The captions are the same as the CPU's, and every refusal is one message.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import weakref
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
import torch

from export import build_engines, build_plans
from export.plans.builder import PlanOptions, PlanTarget, build_plan, open_previous_bundle
from export.plans.bundle_plans import open_target
from export.plans.profiles import batch_sizes, profiles_of
from runtime import BackendError, Box, Captioner, Point, Region, WholeImage
from runtime.backends import EngineReport, open_backend, select_backend
from runtime.backends.cuda.device import Gpu
from runtime.backends.cuda.stream import Stream
from runtime.backends.tensorrt.api import TensorRtApi, is_compatible, open_tensorrt
from runtime.backends.tensorrt.build import Profile, build_plan_bytes
from runtime.backends.tensorrt.engine import TrtBackend, TrtBoundRun, TrtEngine
from runtime.backends.tensorrt.rtx import open_tensorrt_rtx
from runtime.bundle import MANIFEST, Bundle, EngineFiles, Manifest, PlanRecord, ShapeRange
from runtime.cli.main import main
from runtime.decoding.gpu_greedy import DeviceGreedyDecoder
from runtime.decoding.greedy import GreedyDecoder
from runtime.doctor.backends import SMALL_GRAPH
from runtime.options import DecodeKeywords, DescribeKeywords
from tests.conftest import build_once, without_home
from tests.cuda_double import CUDA, Allocations, CudaDouble
from tests.doubles import RecordingEngine
from tests.tensorrt_double import ContractError, Double, Faults, tensorrt_double

VERSIONS = ("10.3.0.30", "11.4.0.106")
CPU = torch.device("cpu")
DEFAULT_OPTIONS = PlanOptions()
GRAPHS = ("backbone.onnx", "reencoder.onnx", "decoder.onnx", "beam_decoder.onnx")
PIXELS = torch.randint(0, 256, (3, 240, 320), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
REGIONS: list[Region] = [Box(20, 30, 200, 180), Box(90, 10, 150, 190), Point(60, 60), WholeImage(), Box(5, 5, 300, 200)]

Install = Callable[..., Double]


def install_double(patch: pytest.MonkeyPatch, double: Double, cache: Path) -> None:
    patch.setitem(sys.modules, "tensorrt", double)
    patch.setenv("XDG_CACHE_HOME", str(cache))
    patch.setattr("runtime.backends.cuda.device.current_gpu", lambda: CPU)
    patch.setattr("runtime.backends.tensorrt.engine.current_gpu", lambda: CPU)


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Install:
    """A function that installs a double of a version of TensorRT."""

    def install(version: str = VERSIONS[0], gpu: str = "cpu", faults: Faults | None = None) -> Double:
        double = tensorrt_double(version, gpu, faults)
        install_double(monkeypatch, double, tmp_path / "cache")
        return double

    return install


@pytest.fixture(scope="module", params=VERSIONS)
def version(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def trt_bundle(tmp_path_factory: pytest.TempPathFactory, version: str) -> Bundle:
    """The demo as `build_engines.py --backend tensorrt` builds it."""
    with pytest.MonkeyPatch.context() as patch:
        install_double(patch, tensorrt_double(version), tmp_path_factory.mktemp("cache"))
        options = ("--backend", "tensorrt", "--max-regions", "6", "--max-images", "2")
        folder = build_once(tmp_path_factory, "demo", f"demo-trt-{version}", *options)
    return Bundle(folder)


def test_captions_are_those_of_the_cpu(install: Install, trt_bundle: Bundle, version: str, demo: Captioner) -> None:
    double = install(version)
    with Captioner.load(trt_bundle.folder) as captioner:
        assert captioner.backend.name == f"tensorrt {version} cpu"
        before = double.state.count("execute_async_v3")
        ours, theirs = captioner.encode([PIXELS] * 3), demo.encode([PIXELS] * 3)
        assert double.state.count("execute_async_v3") == before + 2, "two images at once, then one"
        torch.testing.assert_close(ours.tokens, theirs.tokens, rtol=0, atol=1e-5)
        kinds: list[DescribeKeywords] = [{}, {"reencode": "mean"}, {"beams": 3}, {"score": "reference"}]
        for options in kinds:
            regions = [region for region in REGIONS if isinstance(region, Box) or "reencode" not in options]
            got = captioner.describe(ours[0], regions, **options)
            expected = demo.describe(theirs[0], regions, **options)
            assert [caption.text for caption in got] == [caption.text for caption in expected]
            assert [caption.score for caption in got] == pytest.approx(
                [caption.score for caption in expected], rel=1e-3
            )


def test_the_cls_token_is_reencoded_with_all_patches_and_registers(
    install: Install, trt_bundle: Bundle, version: str, demo: Captioner
) -> None:
    install(version)
    whole = [Box(0, 0, 320, 240)]
    with Captioner.load(trt_bundle.folder) as captioner:
        got, expected = (one.vectors(one.encode(PIXELS), whole, reencode="cls") for one in (captioner, demo))
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)


def test_a_step_takes_one_call_of_tensorrt_in_memory_that_stays(
    install: Install, trt_bundle: Bundle, version: str
) -> None:
    double = install(version)
    engine = RecordingEngine(TrtBackend(open_tensorrt()).open(trt_bundle.engine("decoder")))
    config, width = trt_bundle.manifest.decoder, trt_bundle.manifest.backbone.output_dim
    assert config.batch_sizes == (1, 4, 6)
    greedy = GreedyDecoder(engine, config)
    vectors = torch.randn(5, width, generator=torch.Generator().manual_seed(0))
    first = greedy.decode(vectors, ignore_eos=True)
    assert double.state.count("execute_async_v3") == config.max_new_tokens
    assert double.state.count("create_execution_context") == 1
    assert greedy.decode(vectors, ignore_eos=True).ids == first.ids
    assert double.state.count("create_execution_context") == 1, "the second call allocates nothing"
    assert [shapes["vectors"][0] for shapes in engine.bindings] == [6]
    (bound,) = engine.bound_runs
    assert isinstance(bound, TrtBoundRun)
    assert bound.capture_mode == "around"


def test_an_engine_reports_its_version_and_the_layers_that_it_was_fused_into(
    install: Install, trt_bundle: Bundle, version: str
) -> None:
    install(version)
    with Captioner.load(trt_bundle.folder) as captioner:
        report = captioner.pipeline.reports()["backbone"]
        assert isinstance(report, EngineReport)
        layers = captioner.fused_layers()
        assert captioner.captured() == {"backbone": ["not on a CUDA device"], "decoder": ["not on a CUDA device"]}
    assert layers == list(report.fused_layers or ())
    assert layers
    assert report.provider == f"TensorRT {version} ({len(layers)} layers)"


def test_a_plan_has_a_profile_for_each_use(trt_bundle: Bundle) -> None:
    manifest = trt_bundle.manifest
    assert manifest.backend == "tensorrt"
    plans = {plan.graph: plan for plan in manifest.plans}
    assert set(plans) == set(GRAPHS)
    assert [profile["pixel_values"].max[0] for profile in plans["backbone.onnx"].profiles] == [1, 2]
    assert [profile["vectors"].min[0] for profile in plans["decoder.onnx"].profiles] == [1, 4, 6]
    for plan in plans.values():
        assert plan.file in manifest.files
    assert select_backend(trt_bundle).reason == "the bundle was built for it"


@pytest.mark.slow
def test_plans_that_nothing_has_changed_for_are_not_built_again(
    install: Install, trt_bundle: Bundle, version: str, tmp_path: Path
) -> None:
    double = install(version)
    folder = tmp_path / "bundle"
    shutil.copytree(trt_bundle.folder, folder)
    options = ["--backend", "tensorrt", "--max-images", "2", "--max-regions", "5"]
    assert build_engines.main(["demo", "--out", str(folder), *options]) == 0
    assert double.state.count("build_serialized_network") == 3, "all but the backbone's, which has no regions"
    assert _plan(folder, "backbone") == _plan(trt_bundle.folder, "backbone")
    assert _plan(folder, "decoder") != _plan(trt_bundle.folder, "decoder")
    assert Bundle(folder).manifest.decoder.batch_sizes == (1, 4, 5)


def test_plans_of_strangers_are_not_loaded_before_somebody_trusts_them(
    install: Install,
    trt_bundle: Bundle,
    version: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "of somebody else"))
    double, folder = install(version), trt_bundle.folder
    with pytest.raises(BackendError, match="backbone.plan: a TensorRT plan is a program, .* patchcaption trust "):
        Captioner.load(folder)
    assert double.state.count("deserialize_cuda_engine") == 0
    assert main(["trust", str(folder)]) == 0
    assert f"{folder}/decoder.plan: trusted from now on\n" in capsys.readouterr().out
    with Captioner.load(folder) as captioner:
        assert captioner.caption(PIXELS, REGIONS)


def test_plans_of_strangers_are_not_reused(
    install: Install, trt_bundle: Bundle, version: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "of somebody else"))
    double, out = install(version), tmp_path / "bundle"
    assert build_plans.main([str(trt_bundle.folder), "--out", str(out)]) == 0
    assert double.state.count("build_serialized_network") == 4
    Captioner.load(out).close()


def test_trust_that_cannot_be_saved_is_refused(
    install: Install,
    trt_bundle: Bundle,
    version: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    install(version)
    monkeypatch.setenv("XDG_DATA_HOME", "/dev/null")
    assert main(["trust", str(trt_bundle.folder)]) == 1
    assert "that a plan is trusted cannot be remembered: " in capsys.readouterr().err


def test_nothing_in_a_bundle_without_plans_needs_trust(demo_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["trust", str(demo_bundle)]) == 0
    assert capsys.readouterr().out.endswith("it has no TensorRT plans, and nothing else in a bundle is a program\n")


@pytest.mark.slow
def test_a_bundle_that_was_built_elsewhere_gets_its_plans_where_they_run(
    install: Install,
    bundle_copy: Callable[[], Path],
    demo: Captioner,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder, double = bundle_copy(), install()
    assert build_plans.main([str(folder)]) == 0
    assert capsys.readouterr().out == f"{folder}: 4 plans\n"
    built = Bundle(folder)  # compares every file
    assert built.manifest.backend == "tensorrt"
    assert {plan.graph for plan in built.manifest.plans} == set(GRAPHS)
    with Captioner.load(folder) as captioner:
        assert captioner.backend.name.startswith("tensorrt ")
        got, expected = (one.caption(PIXELS, REGIONS) for one in (captioner, demo))
        assert [caption.text for caption in got] == [caption.text for caption in expected]
    before = double.state.count("build_serialized_network")
    assert build_plans.main([str(folder), "--out", str(tmp_path / "other")]) == 0
    assert double.state.count("build_serialized_network") == before, "nothing that plans depend on has changed"
    assert Bundle(tmp_path / "other").manifest.plans == built.manifest.plans


@pytest.mark.slow
def test_a_bundle_with_prompts_gets_a_plan_of_each_graph_and_gives_the_captions_of_the_cpu(
    install: Install, prompted_bundle: Path, prompted_gpu_bundle: Path, tmp_path: Path
) -> None:
    install()
    folder = tmp_path / "bundle"
    assert build_plans.main([str(prompted_gpu_bundle), "--out", str(folder)]) == 0
    plans = {plan.graph: plan for plan in Bundle(folder).manifest.plans}
    assert set(plans) == {*GRAPHS, "mapping.onnx", "prefill.onnx"}
    most = Bundle(folder).manifest.decoder.prompt
    assert most is not None
    assert [one["prompt_ids"].max for one in plans["prefill.onnx"].profiles] == [
        (rows, most.max_tokens) for rows in (1, 4, 16)
    ]
    vectors = torch.randn(21, 192, generator=torch.Generator().manual_seed(0))
    with Captioner.load(folder) as captioner, Captioner.load(prompted_bundle) as plain:
        kinds: list[DecodeKeywords] = [{}, {"beams": 3}]
        for options in kinds:
            got, expected = (one.decode(vectors, **options) for one in (captioner, plain))
            assert [caption.ids for caption in got] == [caption.ids for caption in expected]
            assert [caption.score for caption in got] == pytest.approx([one.score for one in expected], rel=1e-3)


@pytest.mark.slow
def test_a_bundle_for_another_device_is_exported_without_tensorrt(
    tmp_path_factory: pytest.TempPathFactory, install: Install, tmp_path: Path
) -> None:
    folder = build_once(tmp_path_factory, "demo", "demo-without-plans", "--backend", "tensorrt", "--without-plans")
    assert Bundle(folder).manifest.plans == ()
    install()
    with pytest.raises(BackendError, match=f"no TensorRT plan was built of it: .*patchcaption build-plans {folder}"):
        Captioner.load(folder)
    assert build_plans.main([str(folder), "--out", str(tmp_path / "here")]) == 0
    Captioner.load(tmp_path / "here").close()


def test_plans_are_built_without_what_exports_graphs() -> None:
    heavy = ("onnxscript", "transformers", "h5py", "huggingface_hub")
    code = f"import sys, export.build_plans; print([name for name in {heavy} if name in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_plans_that_cannot_be_built_leave_the_bundle_as_it_was(
    install: Install, bundle_copy: Callable[[], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = bundle_copy()
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    install(faults=Faults(parser_errors=("no such operator",)))
    assert build_plans.main([str(folder)]) == 1
    assert "no such operator" in capsys.readouterr().err
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
    assert [file.name for file in folder.parent.iterdir() if file.name.startswith(".")] == []
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["engines"]["backbone"]["precision"] = "int8"
    (folder / MANIFEST).write_text(json.dumps(manifest))
    assert build_plans.main([str(folder)]) == 1
    assert "its int8 is for CPUs" in capsys.readouterr().err


def test_fp8_is_refused_where_the_gpu_has_none(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    install()
    monkeypatch.setattr(Gpu, "current", classmethod(lambda cls: cls("Orin", "8.7")))
    with pytest.raises(BackendError, match="fp8: Orin with compute capability 8.7 has fp32, fp16, bf16, int8"):
        open_target("tensorrt", "fp8", DEFAULT_OPTIONS)
    monkeypatch.setattr(Gpu, "current", classmethod(lambda cls: cls("Thor", "11.0")))
    assert open_target("tensorrt", "fp8", DEFAULT_OPTIONS).api.version == VERSIONS[0]


def _plan(folder: Path, graph: str) -> bytes:
    return (folder / f"{graph}.plan").read_bytes()


# One graph and its plan, quick to build.


@pytest.fixture
def work(demo_bundle: Path, tmp_path: Path) -> Path:
    """A folder with the demo's decoder."""
    folder = tmp_path / "work"
    folder.mkdir()
    for name in ("decoder.onnx", "decoder.onnx.data"):
        shutil.copyfile(demo_bundle / name, folder / name)
    return folder


@pytest.fixture(scope="module")
def manifest(demo_bundle: Path) -> Manifest:
    return Bundle(demo_bundle, verify=False).manifest


@pytest.fixture(scope="module")
def profiles(manifest: Manifest) -> list[Profile]:
    """The profiles of a decoder for 1 and for 4 captions at once."""
    decoder = manifest.decoder.model_copy(update={"batch_sizes": (1, 4)})
    return profiles_of(manifest.model_copy(update={"decoder": decoder}))["decoder"]


def build(
    api: TensorRtApi, work: Path, profiles: list[Profile], options: PlanOptions = DEFAULT_OPTIONS, gpu: str = "cpu"
) -> PlanRecord:
    target, reported = PlanTarget.on(Gpu(gpu, "8.7"), api), []
    record = build_plan(
        target, work / "decoder.onnx", profiles, options, None, lambda *progress: reported.append(progress)
    )
    assert {"Building engine", "Cloning network graph"} < {phase for phase, _, _ in reported}
    assert all(0 <= step < steps for _, step, steps in reported)
    return record


def open_plan(work: Path, record: PlanRecord) -> TrtEngine:
    """Open a plan as the runtime opens it."""
    return TrtBackend(open_tensorrt()).open(EngineFiles(work / record.graph, plan=(record, work / record.file)))


def inputs_of(engine: TrtEngine, manifest: Manifest, rows: int = 1) -> dict[str, torch.Tensor]:
    """Return a decoder's inputs."""
    config, width = manifest.decoder, manifest.backbone.output_dim
    cache = (rows, config.num_heads, config.max_new_tokens, config.head_dim)
    shapes: dict[str, tuple[int, ...]] = {"vectors": (rows, width), "input_ids": (rows,), "position": (1,)}
    return {name: torch.zeros(shapes.get(name, cache), dtype=engine.dtype(name)) for name in engine._io.inputs}


def test_a_closed_engine_waits_for_its_contexts_and_releases_those_of_bound_runs_too(
    install: Install, work: Path, profiles: list[Profile], manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    install()
    engine = open_plan(work, build(open_tensorrt(), work, profiles))
    inputs = inputs_of(engine, manifest)
    bound = engine.bind(inputs, engine.run(inputs))
    contexts = [weakref.ref(context._context) for context in (*engine._contexts.values(), bound._context)]
    alive: list[bool] = []
    monkeypatch.setattr(engine.stream, "synchronize", lambda: alive.extend(one() is not None for one in contexts))
    engine.close()
    assert alive == [True, True], "they may still run"
    assert [one() for one in contexts] == [None, None]
    with pytest.raises(BackendError, match="decoder.plan: it was closed"):
        bound.run()


def test_contexts_are_made_and_given_their_workspace_on_the_engines_stream(
    install: Install, work: Path, profiles: list[Profile], manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    double = install()
    record = build(open_tensorrt(), work, profiles)
    cuda = CudaDouble()
    cuda.install(monkeypatch)
    monkeypatch.setattr("runtime.backends.tensorrt.engine.Stream", lambda _: Stream(CUDA))
    called_on: dict[str, str] = {}
    note = double.state.call

    def call(name: str, *values: object) -> None:
        called_on[name] = cuda.current.name
        note(name, *values)

    monkeypatch.setattr(double.state, "call", call)
    with Allocations(cuda) as allocations:
        engine = open_plan(work, record)
        outputs = engine.run(inputs_of(engine, manifest))
    calls = (
        "deserialize_cuda_engine",
        "create_execution_context",
        "set_optimization_profile_async",
        "execute_async_v3",
    )
    assert {name: called_on[name] for name in calls} == dict.fromkeys(calls, "own"), "the engine's GPU is current there"
    (context,) = engine._contexts.values()
    assert context._workspace is not None
    assert allocations.stream_of(context._workspace) == "own"
    assert {allocations.stream_of(tensor) for tensor in outputs.values()} == {"outside"}


def test_inputs_are_read_at_aligned_addresses_and_not_kept(
    install: Install, work: Path, profiles: list[Profile], manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    install()
    engine = open_plan(work, build(open_tensorrt(), work, profiles))
    inputs = inputs_of(engine, manifest)
    expected = engine.run(inputs)
    misaligned = torch.zeros(inputs["vectors"].numel() + 1)[1:].view(1, -1)
    assert misaligned.data_ptr() % 256
    (context,) = engine._contexts.values()
    addresses: dict[str, int] = {}
    set_address = context._context.set_tensor_address  # type: ignore[union-attr]
    monkeypatch.setattr(
        context._context,
        "set_tensor_address",
        lambda name, address: (addresses.update({name: address}), set_address(name, address))[1],
    )
    got = engine.run({**inputs, "vectors": misaligned})
    assert addresses["vectors"] != misaligned.data_ptr()
    torch.testing.assert_close(got["log_probs"], expected["log_probs"])
    freed = weakref.ref(misaligned)
    del misaligned
    assert freed() is None


def test_a_user_without_a_home_builds_without_a_timing_cache(
    install: Install, work: Path, profiles: list[Profile], monkeypatch: pytest.MonkeyPatch
) -> None:
    install()
    without_home(monkeypatch)
    assert PlanTarget.on(Gpu("cpu", "8.7"), open_tensorrt()).timing_cache is None
    build(open_tensorrt(), work, profiles)


def test_every_option_reaches_the_builder(install: Install, work: Path, profiles: list[Profile]) -> None:
    double = install("11.4.0.106")
    api = open_tensorrt()
    keys = {build(api, work, profiles).key}
    for options in (
        PlanOptions(workspace_mib=64),
        PlanOptions(version_compatible=True),
        PlanOptions(hardware="same-capability"),
        PlanOptions(dla=1),
        PlanOptions(optimization_level=5),
    ):
        keys.add(build(api, work, profiles, options).key)
    keys.add(build(api, work, profiles[:1]).key)
    keys.add(build(api, work, profiles, gpu="other").key)
    assert len(keys) == 8, "each makes another plan"
    assert double.state.count("build_serialized_network") == 8


def test_a_hardware_level_that_a_version_lacks_is_named(install: Install, work: Path, profiles: list[Profile]) -> None:
    install("10.3.0.30")
    with pytest.raises(
        BackendError, match="TensorRT 10.3.0.30 has no --hardware same-capability; take ampere. or same"
    ):
        build(open_tensorrt(), work, profiles, PlanOptions(hardware="same-capability"))


def test_the_timing_cache_is_kept_for_each_version_and_gpu(
    install: Install, work: Path, profiles: list[Profile]
) -> None:
    install("10.3.0.30")
    api = open_tensorrt()
    file = PlanTarget.on(Gpu("cpu", "8.7"), api).timing_cache
    assert file is not None
    build(api, work, profiles)
    assert file.read_bytes() == b"10.3.0.30."
    build(api, work, profiles)
    assert file.read_bytes() == b"10.3.0.30..", "the timings were read, and written with new ones"
    file.write_bytes(b"another version's")
    build(api, work, profiles)
    assert file.read_bytes() == b"10.3.0.30."
    assert [path.name for path in file.parent.iterdir()] == [file.name]
    install("11.4.0.106")
    assert PlanTarget.on(Gpu("cpu", "8.7"), open_tensorrt()).timing_cache != file


@pytest.mark.parametrize(
    ("faults", "message"),
    [
        (
            Faults(parser_errors=("no importer for op Foo", "and Bar")),
            "cannot read it: node 3: no importer for op Foo; ",
        ),
        (
            Faults(
                returns_nothing=frozenset({"build_serialized_network"}),
                logged_error="Error Code 10:  no\n implementation",
            ),
            "building its plan: TensorRT .* refused: Error Code 10: no implementation",
        ),
        (Faults(returns_nothing=frozenset({"build_serialized_network"})), "refused: it gave no reason"),
        (Faults(returns_nothing=frozenset({"add_optimization_profile"})), "profile 0: TensorRT .* refused"),
    ],
)
def test_a_build_that_fails_says_what_tensorrt_said_and_leaves_no_plan(
    install: Install, work: Path, profiles: list[Profile], faults: Faults, message: str
) -> None:
    install(faults=faults)
    with pytest.raises(BackendError, match=message):
        build(open_tensorrt(), work, profiles)
    assert not (work / "decoder.plan").exists()


def test_what_the_parser_says_is_one_line_and_is_said_once(install: Install) -> None:
    install()
    api = open_tensorrt()
    transpose = onnx.helper.make_node("Transpose", ["x"], ["y"])
    x, y = (onnx.helper.make_tensor_value_info(name, onnx.TensorProto.UINT8, [2, 2]) for name in "xy")
    graph = onnx.helper.make_model(onnx.helper.make_graph([transpose], "graph", [x], [y])).SerializeToString()
    with pytest.raises(
        BackendError, match="^it: TensorRT 10.3.0.30 cannot read it: node 0: Invalid Node .*UInt8"
    ) as error:
        build_plan_bytes(api, lambda parser: parser.parse(graph), [], "it")
    assert "\n" not in str(error.value)
    with pytest.raises(
        BackendError, match="^it: TensorRT 10.3.0.30 cannot read it: Assertion failed: .*: Failed to parse"
    ):
        build_plan_bytes(api, lambda parser: parser.parse(b"no graph"), [], "it")
    with pytest.raises(BackendError, match="refused: IBuilder::buildSerializedNetwork: .* no optimization profile"):
        build_plan_bytes(api, lambda parser: parser.parse(SMALL_GRAPH), [], "it")


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1,) * 9, "^it: profile 0: x: set_shape..: incompatible function arguments"),
        ((-1, 4), "^it: profile 0: x: Shape provided for min is inconsistent"),
    ],
)
def test_a_shape_that_tensorrt_does_not_take_is_named(install: Install, shape: tuple[int, ...], message: str) -> None:
    install()
    api, profile = open_tensorrt(), {"x": ShapeRange.model_construct(min=shape, opt=shape, max=shape)}
    with pytest.raises(BackendError, match=message):
        build_plan_bytes(api, lambda parser: parser.parse(SMALL_GRAPH), [profile], "it")
    assert not api.errors, "it would be said again with the next one"


def interrupt(name: str, done: int, total: int) -> None:  # noqa: ARG001
    raise KeyboardInterrupt


def test_an_interrupted_build_is_no_failure_of_tensorrt(install: Install, work: Path, profiles: list[Profile]) -> None:
    install()
    on_double, real = PlanTarget.on(Gpu("cpu", "8.7"), open_tensorrt()), PlanTarget(open_tensorrt_rtx(), None, ("8.9",))
    for target in (on_double, real):
        with pytest.raises(KeyboardInterrupt):
            build_plan(target, work / "decoder.onnx", profiles, DEFAULT_OPTIONS, None, interrupt)
    assert not (work / "decoder.plan").exists()


def test_a_bundle_whose_plans_cannot_be_built_is_not_written(
    install: Install, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    install(faults=Faults(parser_errors=("no importer",)))
    assert build_engines.main(["demo", "--out", str(tmp_path / "bundle"), "--backend", "tensorrt"]) == 1
    assert "cannot read it: node 3: no importer" in " ".join(capsys.readouterr().err.split())
    assert [path.name for path in tmp_path.iterdir()] == []


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ("deserialize_cuda_engine", "decoder.plan: loading it: TensorRT 10.3.0.30 refused: out of memory"),
        ("create_execution_context", "decoder.plan: making an execution context: .* refused: out of memory"),
        ("set_optimization_profile_async", "decoder.plan: choosing profile 1: "),
        ("set_input_shape", "decoder.plan: .* of shape .*: TensorRT"),
        ("set_tensor_address", "decoder.plan: .* at its address: TensorRT"),
        ("execute_async_v3", "decoder.plan: running it: TensorRT"),
    ],
)
def test_a_run_that_fails_says_which_call_and_what_tensorrt_said(
    install: Install, work: Path, profiles: list[Profile], manifest: Manifest, call: str, message: str
) -> None:
    double = install()
    record = build(open_tensorrt(), work, profiles)
    double.state.faults = Faults(returns_nothing=frozenset({call}), logged_error="out of memory")

    def run_step() -> None:
        engine = open_plan(work, record)
        DeviceGreedyDecoder(engine, manifest.decoder, 4, manifest.backbone.output_dim, CPU).step_work.run()

    with pytest.raises(BackendError, match=message):
        run_step()


def test_inputs_of_other_names_dtypes_or_shapes_are_one_message(
    install: Install, work: Path, profiles: list[Profile], manifest: Manifest
) -> None:
    install()
    engine = open_plan(work, build(open_tensorrt(), work, profiles))
    config, width = manifest.decoder, manifest.backbone.output_dim
    with pytest.raises(BackendError, match="expected .*'past_key_values.0.key'.*, got .'vectors'"):
        engine.run({"vectors": torch.zeros(1, width)})
    with pytest.raises(BackendError, match="built for other shapes than .*vectors .5, .*; .* larger --max-images or"):
        DeviceGreedyDecoder(engine, config, 5, width, CPU)
    half = {name: torch.zeros(4, dtype=torch.float16) for name in ("vectors",)}
    with pytest.raises(BackendError, match="expected .* got "):
        engine.bind(half, {})
    engine.close()
    with pytest.raises(BackendError, match="it was closed"):
        DeviceGreedyDecoder(engine, config, 4, width, CPU)


@pytest.mark.parametrize(
    ("built", "here", "options", "message"),
    [
        (("10.3.0.30", "cpu"), ("10.7.0.23", "cpu"), PlanOptions(), "built by TensorRT 10.3.0.30, here is 10.7.0.23; "),
        (("10.3.0.30", "Orin"), ("10.3.0.30", "cpu"), PlanOptions(), "built for Orin .8.7., here is cpu .0.0.; build "),
        (("10.3.0.30", "cpu"), ("10.7.0.23", "cpu"), PlanOptions(version_compatible=True), None),
        (("10.7.0.23", "cpu"), ("10.3.0.30", "cpu"), PlanOptions(version_compatible=True), "here is 10.3.0.30"),
        (("10.7.0.23", "cpu"), ("11.4.0.106", "cpu"), PlanOptions(version_compatible=True), "here is 11.4.0.106"),
        (("10.3.0.30", "Orin"), ("10.3.0.30", "cpu"), PlanOptions(hardware="ampere+"), "here is cpu .0.0."),
    ],
)
def test_a_plan_is_loaded_only_where_it_holds(
    install: Install,
    work: Path,
    profiles: list[Profile],
    built: tuple[str, str],
    here: tuple[str, str],
    options: PlanOptions,
    message: str | None,
) -> None:
    install(*built)
    record = build(open_tensorrt(), work, profiles, options, gpu=built[1])
    install(*here)
    if message is None:
        assert open_plan(work, record).dtype("input_ids") == torch.int64
    else:
        with pytest.raises(BackendError, match=message):
            open_plan(work, record)


def test_versions_are_compared_by_their_numbers() -> None:
    assert is_compatible("10.3.0.30", "10.13.3.9", version_compatible=True)
    assert not is_compatible("10.13.3.9", "10.3.0.30", version_compatible=True)
    assert not is_compatible("10.3.0.30", "10.3.0.31", version_compatible=False)


def test_without_tensorrt_or_with_one_too_old_the_message_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, install: Install, demo_bundle: Path, trt_bundle: Bundle
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    for load in (lambda: open_backend("tensorrt", bundle=trt_bundle), lambda: Captioner.load(trt_bundle.folder)):
        with pytest.raises(BackendError, match="TensorRT cannot be imported .*: pip install tensorrt; on a Jetson"):
            load()
    install("10.0.1.6")
    with pytest.raises(BackendError, match="TensorRT 10.0.1.6: expected 10.3 or newer"):
        open_backend("tensorrt", bundle=trt_bundle)
    install()
    with pytest.raises(BackendError, match="no TensorRT plan was built of it: patchcaption build-plans"):
        Captioner.load(demo_bundle, "tensorrt")
    assert open_backend("tensorrt").name == f"tensorrt {VERSIONS[0]} cpu", "plans are named when they are opened"


def test_profiles_have_the_shapes_that_the_runtime_asks_for(manifest: Manifest) -> None:
    assert batch_sizes(1) == (1,)
    assert batch_sizes(16) == (1, 4, 16)
    assert batch_sizes(100) == (1, 4, 16, 64, 100)
    assert batch_sizes(1000) == (1, 4, 16, 64, 256, 1000)
    profiles, tokens = profiles_of(manifest), manifest.backbone.tokens
    assert len(profiles["backbone"]) == 2
    alone = manifest.backbone.model_copy(update={"max_batch_size": 1})
    assert len(profiles_of(manifest.model_copy(update={"backbone": alone}))["backbone"]) == 1
    (beams,) = profiles["beam_decoder"]
    cache = beams["past_key_values.0.key"]
    assert (cache.min[0], cache.max[0]) == (1, 256)
    reencoder = [profile["tokens"] for profile in profiles["reencoder"]]
    width = manifest.backbone.output_dim
    assert [shapes.max for shapes in reencoder] == [(256, 16, width), (252, 65, width), (62, tokens.num_tokens, width)]
    assert {shapes.min for shapes in reencoder} == {(1, 1, width)}
    assert tokens.num_tokens == 1 + 4 + 256
    with pytest.raises(ValueError, match="expected min <= opt <= max, got .2,., .1,., .3,."):
        ShapeRange(min=(2,), opt=(1,), max=(3,))


def test_a_folder_without_a_bundle_has_no_plans_to_take(tmp_path: Path) -> None:
    assert open_previous_bundle(tmp_path) is None


# The double itself.


def test_names_are_those_of_the_version() -> None:
    old, new = map(tensorrt_double, VERSIONS)
    assert hasattr(old.BuilderFlag, "FP16")
    assert not hasattr(new.BuilderFlag, "FP16")
    assert not hasattr(new.NetworkDefinitionCreationFlag, "EXPLICIT_BATCH")
    assert int(old.NetworkDefinitionCreationFlag.STRONGLY_TYPED) == 1
    assert int(new.NetworkDefinitionCreationFlag.STRONGLY_TYPED) == 0
    assert not hasattr(old.HardwareCompatibilityLevel, "SAME_COMPUTE_CAPABILITY")
    with pytest.raises(AttributeError, match="has no attribute 'IInt8Calibrator'"):
        _ = new.IInt8Calibrator


def test_the_double_refuses_what_tensorrt_forbids(install: Install, work: Path, profiles: list[Profile]) -> None:
    double, api = install(), open_tensorrt()
    build(api, work, profiles)
    engine = double.Runtime(api.logger).deserialize_cuda_engine(_plan(work, "decoder"))
    context = engine.create_execution_context(double.ExecutionContextAllocationStrategy.USER_MANAGED)
    with pytest.raises(ContractError, match="a shape before a profile"):
        context.set_input_shape("input_ids", (1,))
    with pytest.raises(ContractError, match="default stream"):
        context.set_optimization_profile_async(0, 0)
    assert context.set_optimization_profile_async(0, 1)
    assert not context.set_input_shape("input_ids", (3,)), "outside of the profile"
    assert not context.set_tensor_address("no such", 1)
    with pytest.raises(ContractError, match="no workspace"):
        context.execute_async_v3(1)
    with pytest.raises(ContractError, match="not aligned"):
        context.set_device_memory(1, 4096)
    workspace = torch.empty(8192, dtype=torch.uint8)
    context.set_device_memory(-(-workspace.data_ptr() // 256) * 256, 4096)
    with pytest.raises(ContractError, match="no shapes of"):
        context.execute_async_v3(1)
    layers = json.loads(engine.create_engine_inspector().get_engine_information(double.LayerInformationFormat.JSON))
    assert any(layer["Name"].startswith("Gemm") for layer in layers["Layers"])
    with pytest.raises(AttributeError, match="no attribute 'max_workspace_size'"):
        double.Builder(api.logger).create_builder_config().max_workspace_size = 1
