"""Ends an evaluation by SIGKILL at random moments, one run after another, until one comes to its end.

    python -m tests.benchmarks.killed_evaluation BUNDLE SCENES OUT WHOLE MOMENTS SEED

Each run is a fork of this process, so that libraries are imported once, and has metrics that need no Java. WHOLE is
what a run gives that is not ended. Prints how many runs were ended.
"""

from __future__ import annotations

import os
import random
import signal
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import BinaryIO
from unittest.mock import patch

from benchmarks import quality
from benchmarks.scoring import prediction_log
from benchmarks.scoring.metric_score import MetricScore
from benchmarks.scoring.metrics import CaptionMetrics
from runtime.system.outputs import write_whole
from tests.children import run_fork

_MOST_BYTES = 4000
"""That a run writes before it is ended."""


def exact_share(
    _: CaptionMetrics, said: Mapping[str, str], wanted: Mapping[str, tuple[str, ...]]
) -> dict[str, MetricScore]:
    """Stand in for the metrics: the share of captions that are among their references."""
    return {"exact": MetricScore.of_samples([float(text in wanted[item]) for item, text in said.items()])}


def main() -> None:
    """Run the command until a run is not ended, and once more for the whole one."""
    bundle, scenes, out, whole, moments, seed = sys.argv[1:]
    rng, killed = random.Random(int(seed)), 0
    for number in range(int(moments) + 1):
        allowed_bytes = None if number == int(moments) else rng.randrange(_MOST_BYTES)
        ending = run_fork(partial(_evaluate, bundle, Path(scenes), out, allowed_bytes))
        if ending != -signal.SIGKILL:
            assert ending == 0
            break
        killed += 1
    assert run_fork(partial(_evaluate, bundle, Path(scenes), whole, None)) == 0
    print(killed)


def _evaluate(bundle: str, scenes: Path, out: str, allowed_bytes: int | None) -> int:
    writer = write_whole if allowed_bytes is None else _Writer(allowed_bytes).write
    truth, images = scenes / "traces.json", scenes / "images"
    with (
        patch.multiple(CaptionMetrics, check=lambda _: None, score=exact_share),
        patch.object(prediction_log, "write_whole", writer),
    ):
        return quality.main([bundle, "--annotations", str(truth), "--images", str(images), "--json", out])


class _Writer:
    """Writes so many bytes, and ends the process within the write that would go beyond."""

    def __init__(self, allowed_bytes: int) -> None:
        self.left = allowed_bytes

    def write(self, file: BinaryIO, data: bytes) -> None:
        file.write(data[: self.left])
        if len(data) > self.left:
            os.kill(os.getpid(), signal.SIGKILL)
        self.left -= len(data)


if __name__ == "__main__":
    main()
