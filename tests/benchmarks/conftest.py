"""What tests of evaluations share."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.densecap_recording import f1_scores
from benchmarks.scoring import scores
from benchmarks.scoring.metrics import CaptionMetrics
from tests.benchmarks.killed_evaluation import exact_share


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Metrics without Java, and a cache folder of the test's own."""
    monkeypatch.setattr(CaptionMetrics, "check", lambda _: None)
    monkeypatch.setattr(CaptionMetrics, "score", exact_share)
    monkeypatch.setattr(scores, "meteor_scores", f1_scores)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "patchcaption" / "evaluations"
