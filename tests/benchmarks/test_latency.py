"""The latency benchmark: that it times what the runtime does, counts its work rightly, and keeps what it found."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import latency
from benchmarks.timing import machine_limits, tables
from benchmarks.timing.eager_comparison import COMPARED, PublishedSystem
from benchmarks.timing.report import BundleFacts, Limits, Report, Row, Times
from benchmarks.timing.stage_rows import WARM_UP
from benchmarks.timing.stages import (
    REGION_STAGES,
    STAGES,
    PipelineStages,
    as_regions,
    caption_lengths,
    run_stages,
    sample_boxes,
    total_ms,
    write_sample,
)
from benchmarks.timing.work_estimate import WorkEstimate, backbone_work, decoding_work, pooling_work, projection_work
from export.readers import read_checkpoint
from runtime import Captioner, Fit, PatchcaptionError
from runtime.bundle import BackboneConfig, Bundle, DecoderConfig, Preprocessing, PromptConfig, TokenLayout, sha256_of
from runtime.bundle.graph_io import INPUT_IDS
from tests.conftest import ROOT, SAMPLE
from tests.doubles import RecordingBackend, captioner_of

SCENE = SAMPLE / "scene.jpg"

# 4 patches of 588 numbers and 6 tokens of width 8.
TINY = BackboneConfig(
    family="dinov2",
    name="tiny",
    text_space="tiny",
    embed_dim=8,
    output_dim=8,
    depth=2,
    num_heads=1,
    patch_size=14,
    attention_heads=1,
    tokens=TokenLayout.with_cls(num_registers=1, grid=2),
    preprocessing=Preprocessing(image_size=28, mean=(0, 0, 0), std=(1, 1, 1)),
)
TINY_DECODER = DecoderConfig(
    kind="decap",
    text_space="tiny",
    embed_dim=4,
    num_layers=1,
    num_heads=1,
    head_dim=4,
    max_new_tokens=30,
    vocab_size=10,
    eos_token_ids=(9,),
)
LIMITS = Limits(copy_gb_per_s=10, read_gb_per_s=20, fp32_gflop_per_s=100, bf16_gflop_per_s=1000)


@pytest.fixture(scope="module")
def stages(demo_bundle: Path) -> Iterator[PipelineStages]:
    with Captioner.load(demo_bundle, fit=Fit.CROP) as captioner:
        yield PipelineStages(captioner)


@pytest.fixture
def quick_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine's rates as numbers, where they are not what is tested."""
    monkeypatch.setattr(latency, "measure_limits", lambda _: LIMITS)


@pytest.fixture(scope="module")
def measured(demo_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Report:
    """What the command writes for the demo bundle, with its comparison and its picture."""
    folder = tmp_path_factory.mktemp("latency")
    quick = partial(machine_limits.measure_limits, side=64, seconds=0)
    command = [str(demo_bundle), "--runs", "2", "--regions", "2", "1", "--compare", "eager", "--compare-runs", "1"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(latency, "measure_limits", quick)
        assert latency.main([*command, "--json", str(folder / "run.json"), "--plot", str(folder / "run.png")]) == 0
    assert sorted(path.name for path in folder.iterdir()) == ["run.json", "run.png"]
    with Image.open(folder / "run.png") as picture:
        assert picture.format == "PNG"
        assert len(picture.convert("RGB").getcolors(2**24) or ()) > len(STAGES)
    return Report.read(folder / "run.json")


# The work of a stage


def test_the_work_of_a_backbone_is_as_worked_out_by_hand() -> None:
    # Products: embedding 4 x 588 x 8; 2 blocks of 6 x 12 x 64 and 2 x 6 x 6 x 8; cls scores 4 x 8.
    assert backbone_work(TINY).flop == 2 * (18816 + 2 * (4608 + 576) + 32)
    assert backbone_work(TINY).bytes == 4 * (4704 + 2 * 768)
    assert backbone_work(TINY, weight_bytes=2) == WorkEstimate(58432, 2 * 6240, reduced_precision=True)


def test_the_work_of_a_backbone_is_what_torch_counts(demo_bundle: Path) -> None:
    backbone, facts = read_checkpoint("demo").backbone, BundleFacts.of(demo_bundle)
    pixels = torch.zeros(1, backbone.image_size, backbone.image_size, 3, dtype=torch.uint8)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.inference_mode():
        backbone(pixels)
    # The cls logits are multiplied and summed, and torch counts products of matrices alone.
    logits_flop = 2 * facts.backbone.tokens.num_patches * facts.backbone.embed_dim
    assert backbone_work(facts.backbone).flop == counter.get_total_flops() + logits_flop


def test_the_work_of_pooling_is_one_product() -> None:
    assert pooling_work(TINY, regions=3) == WorkEstimate(2 * 3 * 6 * 8, 4 * (3 * 6 + 6 * 8))


@pytest.mark.parametrize(("memory_bytes", "reduced_precision"), [(4 * 10 * 8, False), (2 * 10 * 8, True)])
def test_the_work_of_a_projection_reads_the_bank_once_as_it_is_stored(
    memory_bytes: int, reduced_precision: bool
) -> None:
    found = projection_work(width=8, regions=2, memory_rows=10, memory_bytes=memory_bytes)
    assert found == WorkEstimate(2 * (2 * 10 * 8 + 2 * 10 * 8), memory_bytes, reduced_precision)


def test_the_work_of_decoding_reads_the_weights_at_each_step() -> None:
    # 12 x 16 numbers in the layer and 10 x 4 of the vocabulary; 8 x 4 of the first step; 1 + 2 + 3 positions attended
    # to, 0 + 1 + 2 of them from the cache, a key and a value of 4 numbers each.
    found = decoding_work(TINY_DECODER, width=8, regions=3, steps=3)
    assert found.flop == 2 * 3 * (3 * 232 + 32 + 6 * 2 * 4)
    assert found.bytes == 4 * (3 * 232 + 32) + 4 * 3 * (3 * 2 * 4)
    half = decoding_work(TINY_DECODER, width=8, regions=3, steps=3, weight_bytes=2)
    assert half == WorkEstimate(found.flop, 2 * 728 + 4 * 72, reduced_precision=True)


def test_the_work_of_decoding_after_a_prompt_reads_the_prompt_in_one_run() -> None:
    # Five soft tokens go through the layer and attend to 1 + 2 + ... 5; two steps attend to 6 and 7, 5 and 6 of them
    # from the cache; each of three tokens is one of the vocabulary.
    prompt = PromptConfig(soft_tokens=5, order="soft_only", max_tokens=5, unit_vectors=True)
    decoder = TINY_DECODER.model_copy(update={"kind": "clipcap", "prompt": prompt})
    found = decoding_work(decoder, width=8, regions=3, steps=3, mapping_weights=100)
    assert found.flop == 2 * 3 * (100 + (5 + 2) * 192 + 3 * 40 + 2 * 4 * (15 + 6 + 7))
    assert found.bytes == 4 * (100 + 3 * 232) + 4 * 3 * 2 * 4 * (5 + 6)


@pytest.mark.parametrize(
    ("work", "limit_ms"),
    [
        (WorkEstimate(flop=10**9, bytes=10**6), 10.0),  # 1 of 100 GFLOP/s against 0.001 of 20 GB/s
        (WorkEstimate(flop=10**9, bytes=10**6, reduced_precision=True), 1.0),
        (WorkEstimate(flop=10**6, bytes=10**9), 50.0),
    ],
)
def test_the_limit_is_the_slower_of_memory_and_arithmetic(work: WorkEstimate, limit_ms: float) -> None:
    assert work.limit_ms(LIMITS) == pytest.approx(limit_ms)


# What is timed


def test_the_first_call_and_the_warm_up_do_not_count() -> None:
    times = Times.of([900.0, 50.0, 40.0, 1.0, 2.0, 3.0], warm_up=2)
    assert (times.first_ms, times.p50_ms, times.runs_ms) == (900.0, 2.0, (1.0, 2.0, 3.0))
    assert times.best_ms == 1.0
    assert times.p90_ms == pytest.approx(2.8)
    assert times.p99_ms == pytest.approx(2.98)


def test_the_stages_do_what_caption_does(stages: PipelineStages) -> None:
    backbone = stages.captioner.manifest.backbone
    regions = as_regions(sample_boxes(backbone.tokens, backbone.patch_size, 5))
    run = run_stages(stages, SCENE, regions, (12, 30))
    assert run.ids == [list(caption.ids) for caption in stages.captioner.caption(SCENE, regions)]
    expected = [(stage, None) for stage in STAGES[:-2]]
    assert list(run.durations_ms) == [*expected, ("decoding", 12), ("text", 12), ("decoding", 30), ("text", 30)]


@pytest.mark.parametrize("steps", [12, 30])
def test_captions_go_through_all_steps_wherever_they_end(demo_bundle: Path, steps: int) -> None:
    backend = RecordingBackend()
    with captioner_of(Bundle(demo_bundle, verify=False), backend) as captioner:
        width = captioner.manifest.backbone.output_dim
        vectors = torch.randn(3, width, generator=torch.Generator().manual_seed(0))
        ids = PipelineStages(captioner).decode(captioner.project(vectors), steps)
    assert [inputs[INPUT_IDS] for inputs in backend.engines["decoder"].runs] == [(3,)] * steps
    assert all(len(of_caption) < 12 for of_caption in ids)  # these end early


def test_a_total_counts_its_own_length_and_what_has_none() -> None:
    durations_ms = {("backbone", None): 1.0, ("decoding", 12): 10.0, ("decoding", 30): 100.0, ("text", 12): 1000.0}
    assert total_ms(durations_ms, STAGES, 12) == 1011.0
    assert total_ms(durations_ms, REGION_STAGES, 30) == 100.0


@pytest.mark.parametrize(("steps", "lengths"), [(30, (12, 30)), (12, (12,)), (8, (8,))])
def test_captions_are_typical_or_as_long_as_can_be(steps: int, lengths: tuple[int, ...]) -> None:
    assert caption_lengths(steps) == lengths


def test_boxes_are_different_and_the_same_again() -> None:
    boxes = sample_boxes(TINY.tokens, TINY.patch_size, 9)  # all that 2 x 2 patches have
    assert len(set(boxes)) == 9
    assert {(0.0, 0.0, 14.0, 14.0), (14.0, 14.0, 0.0, 0.0)} <= set(boxes)
    assert boxes == sample_boxes(TINY.tokens, TINY.patch_size, 9)
    with pytest.raises(PatchcaptionError, match="a grid of 2 x 2 patches has 9 boxes, not 10"):
        sample_boxes(TINY.tokens, TINY.patch_size, 10)


def test_the_sample_is_a_jpeg_as_large_as_a_photograph(tmp_path: Path) -> None:
    write_sample(tmp_path / "sample.jpg")
    with Image.open(tmp_path / "sample.jpg") as image:
        assert (image.format, image.size, image.mode) == ("JPEG", (640, 480), "RGB")
    assert 50_000 < (tmp_path / "sample.jpg").stat().st_size < 250_000


# What is reported


def test_every_stage_has_a_row_for_each_number_of_regions_and_length(measured: Report) -> None:
    keys = [row.key for row in measured.rows]
    assert len(keys) == len(set(keys))
    for regions in (1, 2):
        expected: set[tuple[str, int | None, int | None]] = {(stage, regions, None) for stage in STAGES[:-2]}
        expected |= {(stage, regions, tokens) for tokens in (12, 30) for stage in ("decoding", "text")}
        expected |= {(stage, regions, tokens) for tokens in (12, 30) for stage in ("whole", "second description")}
        expected |= {(stage, regions, 30) for stage in ("caption", "describe", "rest")}
        assert {key for key in keys if key[1] == regions} == expected
    assert measured.settings.regions == (1, 2)


def test_each_row_holds_every_run_and_its_work(measured: Report, demo_bundle: Path) -> None:
    rows, facts = {row.key: row for row in measured.rows}, BundleFacts.of(demo_bundle)
    assert {len(row.times.runs_ms) for row in measured.rows} == {2}
    assert measured.settings.warm_up == WARM_UP
    decoding = rows["decoding", 2, 30]
    assert decoding.gflop == decoding_work(facts.decoder, facts.backbone.output_dim, 2, 30).flop / 1e9
    assert decoding.limit_share == decoding.limit_ms / decoding.times.p50_ms  # type: ignore[operator]
    assert rows["read", 1, None].gflop is rows["rest", 1, 30].gflop is None
    whole, parts = rows["whole", 2, 12], [rows[stage, 2, None] for stage in STAGES[:-2]]
    parts += [rows[stage, 2, 12] for stage in ("decoding", "text")]
    for run, taken in enumerate(whole.times.runs_ms):
        assert taken == pytest.approx(sum(part.times.runs_ms[run] for part in parts))
    assert whole.gflop == pytest.approx(sum(part.gflop or 0 for part in parts))
    assert whole.regions_per_s == pytest.approx(2 * whole.images_per_s)  # type: ignore[operator]


def test_the_rest_is_what_caption_takes_beyond_the_stages(measured: Report) -> None:
    rows = {row.key: row.times for row in measured.rows}
    for run in range(2):
        rest, caption, whole = (rows[name, 1, 30].runs_ms[run] for name in ("rest", "caption", "whole"))
        assert rest == pytest.approx(caption - whole)


def test_a_report_says_what_was_timed_and_where(measured: Report, demo_bundle: Path) -> None:
    assert measured.bundle.manifest_sha256 == sha256_of(demo_bundle / "manifest.json")
    assert (measured.bundle.checkpoint, measured.settings.fit) == ("demo", "crop")
    assert measured.bundle.memory_bytes == (demo_bundle / "memory.safetensors").stat().st_size
    assert {"python", "torch", "onnxruntime"} <= set(measured.machine.versions)
    assert measured.machine.cores >= measured.machine.usable_cores >= 1


def test_the_published_algorithm_stands_beside_every_part(measured: Report) -> None:
    comparison = measured.comparison
    assert comparison is not None
    found = {(ratio.part, ratio.regions, ratio.tokens) for ratio in comparison.ratios}
    assert found == {(part, regions, tokens) for part in COMPARED for regions in (1, 2) for tokens in (12, 30)}
    assert comparison.same_captions == {1: 1, 2: 2}
    eager_ms = {(one.part, one.tokens): one.eager_ms for one in comparison.ratios if one.regions == 2}
    assert eager_ms["whole", 12] == eager_ms["whole", 30]  # it decodes 30 steps for both
    assert eager_ms["second description", 30] < eager_ms["whole", 30]


@pytest.mark.parametrize(("limit_ms", "is_said"), [(0.0, False), (1e9, True)])
def test_more_than_the_machine_can_do_is_explained(measured: Report, limit_ms: float, is_said: bool) -> None:
    rows = tuple(row.model_copy(update={"limit_ms": limit_ms}) for row in measured.rows)
    notes = tables.stage_notes(measured.model_copy(update={"rows": rows}))
    assert any(note.startswith("over 100%") for note in notes) == is_said


def test_a_report_is_read_as_it_was_written(measured: Report, tmp_path: Path) -> None:
    measured.write(tmp_path / "again.json")
    assert Report.read(tmp_path / "again.json") == measured
    assert [path.name for path in tmp_path.iterdir()] == ["again.json"]


def test_two_runs_are_compared_row_by_row(measured: Report) -> None:
    def slower(row: Row) -> Row:
        times = row.times.model_copy(update={"p50_ms": 3 * row.times.p50_ms})
        return row.model_copy(update={"times": times})

    settings = measured.settings.model_copy(update={"threads": 7})
    old = measured.model_copy(update={"rows": tuple(map(slower, measured.rows[:4])), "settings": settings})
    table = tables.against_table(old, measured)
    assert list(table.columns[-1].cells) == ["3.00"] * 4
    assert list(table.columns[0].cells) == [row.stage for row in measured.rows[:4]]
    assert tables.against_notes(old, measured) == ["then / now above 1: faster now; threads 7 -> None"]
    assert "same machine, versions and settings" in tables.against_notes(measured, measured)[0]


@pytest.mark.usefixtures("quick_limits")
def test_a_run_is_shown_against_an_older_one(
    measured: Report, demo_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    measured.write(tmp_path / "old.json")
    command = [str(demo_bundle), "--runs", "1", "--regions", "1", "--against", str(tmp_path / "old.json")]
    assert latency.main(command) == 0
    printed = capsys.readouterr().out
    assert f"against the run of {measured.made_at}" in printed
    assert "fit crop -> stretch" in printed


def test_a_bundle_of_another_architecture_is_not_compared(
    measured: Report, demo_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    written = json.loads(measured.model_dump_json())
    written["bundle"]["backbone"]["depth"] = 3
    written["bundle"]["memory_rows"] = 7
    (tmp_path / "old.json").write_text(json.dumps(written))
    assert latency.main([str(demo_bundle), "--against", str(tmp_path / "old.json")]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "here backbone.depth 7, there 3; memory_rows 2520, there 7" in error


# The machine


def test_every_rate_of_the_machine_is_measured() -> None:
    limits = machine_limits.measure_limits(torch.device("cpu"), copied_bytes=2**16, side=16, seconds=0)
    assert limits.gigabytes_per_s == max(limits.copy_gb_per_s, limits.read_gb_per_s)


def test_the_measured_process_holds_neither_the_exporter_nor_the_plotter() -> None:
    heavy = ("export.bundle_builder", "export.graphs", "export.models", "export.readers", "onnx", "matplotlib")
    code = f"import sys, benchmarks.latency; print(*sorted(set({heavy}) & set(sys.modules)))"
    finished = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert finished.stdout.strip() == ""


# Mistakes in the command


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--runs", "0"], "--runs: expected at least 1, got 0"),
        (["--compare-runs", "0"], "--compare-runs: expected at least 1, got 0"),
        (["--threads", "-1"], "--threads: expected at least 1, got -1"),
        (["--regions", "4", "0"], "--regions: expected at least 1, got 0"),
        (["--regions", "99999"], "--regions: a grid of 16 x 16 patches has 18496 boxes, not 99999"),
        (["--fit", "stretch", "--compare", "eager"], "with --compare expected crop"),
        (["--checkpoint", "demo"], "--checkpoint: it is of --compare eager"),
        (["--json", "nowhere/run.json"], "nowhere/run.json: the folder nowhere does not exist"),
        (["--image", "nowhere.jpg"], "nowhere.jpg: no such file"),
        (["--against", "nowhere.json"], "nowhere.json: cannot be read"),
        (["--against", str(ROOT / "pyproject.toml")], "expected what --json of this version writes"),
        (["--precision", "bf16", "--backend", "cpu"], "precision 'bf16'"),
    ],
)
def test_a_mistake_is_one_line(
    demo_bundle: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    assert latency.main([str(demo_bundle), *options]) == 1
    printed = capsys.readouterr()
    assert message in printed.err
    assert printed.err.startswith("error: ")
    assert printed.err.count("\n") == 1
    assert printed.out == ""


@pytest.mark.usefixtures("quick_limits")
def test_what_was_measured_is_kept_where_the_comparison_fails(
    demo_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [str(demo_bundle), "--runs", "1", "--regions", "1", "--json", str(tmp_path / "run.json")]
    assert latency.main([*command, "--compare", "eager", "--checkpoint", str(tmp_path / "nowhere.yaml")]) == 1
    assert "nowhere.yaml" in capsys.readouterr().err
    assert Report.read(tmp_path / "run.json").comparison is None


def test_another_checkpoint_than_the_bundles_is_refused(demo: Captioner) -> None:
    preprocessing = demo.manifest.backbone.preprocessing.model_copy(update={"image_size": 518})
    larger = demo.manifest.backbone.model_copy(update={"preprocessing": preprocessing})
    manifest = demo.manifest.model_copy(update={"backbone": larger})
    with pytest.raises(
        PatchcaptionError, match="of 518 px with 2520 rows of memory, got dinov2_vitdemo14_reg of 224 px"
    ):
        PublishedSystem.read(manifest, name=None, folder=None, device=torch.device("cpu"))


def test_a_missing_plotter_is_named_before_anything_is_measured(
    demo_bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("benchmarks.timing.plot.find_spec", lambda _: None)
    assert latency.main([str(demo_bundle), "--plot", "run.png"]) == 1
    assert "pip install 'patchcaption[bench]'" in capsys.readouterr().err


@pytest.mark.slow
def test_a_stream_is_timed_beside_the_same_work_in_turn(
    demo_bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("benchmarks.timing.stream_throughput._FRAMES", 6)
    assert latency.main([str(demo_bundle), "--video", "--regions", "1", "2", "--compare-runs", "1"]) == 0
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert len(rows) == 4
    assert latency.main([str(demo_bundle), "--video", "--json", "out.json"]) == 1
    assert "--video: it takes none of" in capsys.readouterr().err
