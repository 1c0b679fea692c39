"""What a board should take, worked out: the arithmetic of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import estimate
from benchmarks.timing.work_estimate import WorkEstimate
from runtime.bundle import Bundle


def test_the_longer_of_arithmetic_and_traffic_counts() -> None:
    board = estimate.Board(gigabytes_per_s=100, fp16_tflop_per_s=10, fp32_tflop_per_s=1)
    busy, reading = (
        WorkEstimate(6 * 10**9, 10**6, reduced_precision=True),
        WorkEstimate(10**6, 8 * 10**7, reduced_precision=True),
    )
    assert estimate.estimate_ms(busy, "backbone", board) == pytest.approx(1.0)  # 0.6 ms at the peak
    assert estimate.estimate_ms(reading, "projection", board) == pytest.approx(1.0)  # 0.8 ms
    assert estimate.estimate_ms(WorkEstimate(6 * 10**9, 10**6), "backbone", board) == pytest.approx(10.0)  # float32


def test_the_bank_is_read_twice(demo_bundle: Path) -> None:
    manifest = Bundle(demo_bundle, verify=False).manifest
    assert manifest.memory is not None
    found = estimate.stage_works(manifest, 4, "fp16", "int8")
    assert found["projection"].bytes == 2 * manifest.memory.num_rows * manifest.backbone.output_dim
    assert found["decoding"].reduced_precision


def test_the_command_prints_a_row_a_board_and_number_of_regions(
    demo_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert estimate.main([str(demo_bundle), "--regions", "1", "16"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert len(lines) == 2 + 2 * len(estimate.BOARDS)
    assert estimate.main([str(demo_bundle), "--regions", "0"]) == 1
    assert estimate.main(["nowhere"]) == 1
    assert capsys.readouterr().err.count("error: ") == 2


def test_decoders_with_prompts_are_estimated_with_their_mapping(
    prompted_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = Bundle(prompted_bundle, verify=False).manifest
    assert estimate.main([str(prompted_bundle), "--regions", "16"]) == 0
    assert len(capsys.readouterr().out.splitlines()) > len(estimate.BOARDS)
    stored = manifest.files["mapping.onnx.data"].bytes
    with_less = {
        **manifest.files,
        "mapping.onnx.data": manifest.files["mapping.onnx.data"].model_copy(update={"bytes": 0}),
    }
    works = [
        estimate.stage_works(one, 16, "fp16", "fp16")["decoding"]
        for one in (manifest, manifest.model_copy(update={"files": with_less}))
    ]
    assert works[0].bytes - works[1].bytes == 2 * (stored // 4), "of float32, estimated for float16"
