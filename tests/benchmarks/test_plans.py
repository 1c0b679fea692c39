"""What plans take: a row for each graph, with the builder's own figures."""

from __future__ import annotations

import pytest

from benchmarks import plans
from tests.conftest import build_once


@pytest.mark.slow
def test_each_graph_is_a_row_with_what_was_fused(
    tmp_path_factory: pytest.TempPathFactory, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--backend", "tensorrt", "--without-plans", "--precision", "fp16")
    bundle = build_once(tmp_path_factory, "demo", "demo-graphs-fp16", *options)
    assert plans.main([str(bundle)]) == 0
    rows = [line.split("|")[1:-1] for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    fused = {cells[0].strip(): (int(cells[1]), int(cells[-2])) for cells in rows[2:]}
    assert fused == {"backbone": (2, 14), "reencoder": (3, 3), "decoder": (5, 20), "beam_decoder": (1, 4)}
    assert plans.main(["nowhere"]) == 1
