"""Options of a training: each that is out of its range is one line that names it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from export.checkpoint import CheckpointError
from export.training.plan import DecoderPlan
from export.training.processes import Processes

ALONE = Processes(0, 1, torch.device("cpu"))
NAN, INFINITY = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rate": 0.0}, "--rate: expected a number of more than 0, got 0.0"),
        ({"rate": NAN}, "--rate: expected a finite number of more than 0, got nan"),
        ({"rate": INFINITY}, "--rate: expected a finite number of more than 0, got inf"),
        ({"warmup_steps": -1}, "--warmup-steps: expected a number of at least 0, got -1"),
        ({"weight_decay": -0.1}, "--weight-decay: expected a number of at least 0, got -0.1"),
        ({"label_smoothing": 1.0}, "--label-smoothing: expected a number of at least 0, less than 1, got 1.0"),
        ({"label_smoothing": -0.1}, "--label-smoothing: expected"),
        ({"clip_norm": 0.0}, "--clip-norm: expected a number of more than 0, got 0.0"),
        ({"clip_norm": NAN}, "--clip-norm: expected"),
        ({"dropout": 1.0}, "--dropout: expected a number of at least 0, less than 1, got 1.0"),
        ({"noise": -0.08, "kind": "capdec"}, "--noise: expected a number of at least 0, got -0.08"),
        ({"noise": INFINITY}, "--noise: expected"),
        ({"held_out": -1}, "--held-out: expected a number of at least 0, got -1"),
        ({"seed": -1}, "--seed: expected a number of at least 0, got -1"),
        ({"tokens": 1}, "--tokens: expected a number of at least 2, got 1"),
        ({"width": 30}, "--width: expected a multiple of 4, its heads, got 30"),
        ({"positions": 20}, "--positions: expected more than --tokens, 20, got 20"),
        ({"precision": "fp16"}, "--precision fp16: is for GPUs; on a CPU expected fp32 or bf16"),
        ({"kind": "capdec", "through_memory": True}, "--through-memory: CapDec has no memory bank"),
    ],
)
def test_options_out_of_their_range_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        replace(DecoderPlan(), **changes).check(ALONE)
    assert str(caught.value).startswith(message)


def test_each_process_needs_a_caption_of_the_batch() -> None:
    with pytest.raises(CheckpointError, match="--batch-size: .* each of 3 processes, got 2"):
        DecoderPlan(batch_size=2).check(Processes(0, 3, torch.device("cpu")))


def test_the_published_numbers_and_the_ends_of_ranges_are_fine() -> None:
    DecoderPlan().check(ALONE)
    DecoderPlan(
        warmup_steps=0, weight_decay=0, label_smoothing=0, dropout=0, noise=0, tokens=2, positions=3, epochs=10**30
    ).check(ALONE)


def test_too_few_captions_are_counted() -> None:
    DecoderPlan(batch_size=4, held_out=2).check_captions(6)
    with pytest.raises(CheckpointError, match="expected at least 4 captions to learn, .* and 2 to hold out, got 5; "):
        DecoderPlan(batch_size=4, held_out=2).check_captions(5)
    with pytest.raises(CheckpointError, match="a batch, got 3; take a smaller --batch-size$"):
        DecoderPlan(batch_size=4).check_captions(3)


def test_a_plan_has_the_fingerprint_of_no_other(tmp_path: Path) -> None:
    (tmp_path / "a.pt").write_bytes(b"a")
    (tmp_path / "b.pt").write_bytes(b"b")
    plans = [DecoderPlan(), *(DecoderPlan(start_from=tmp_path / name) for name in ("a.pt", "b.pt"))]
    plans += [DecoderPlan(seed=1), DecoderPlan(steps=5), DecoderPlan(start_token=False), DecoderPlan(rate=1e-4)]
    assert len({plan.fingerprint() for plan in plans}) == len(plans)
    (tmp_path / "b.pt").write_bytes(b"a")
    assert plans[1].fingerprint() == plans[2].fingerprint()
