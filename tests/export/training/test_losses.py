"""The losses of a training: a table and a picture."""

from __future__ import annotations

import io
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from export.checkpoint import CheckpointError
from export.training.held_out import HeldOutScore
from export.training.losses import LossHistory, check_drawing
from export.training.trainer import StepResult


def history() -> LossHistory:
    """Five steps of epochs that have two."""
    made = LossHistory(2)
    for number in range(5):
        made.add(StepResult(4 - number / 2, number / 8))
        if number in (1, 4):
            made.add_held_out(HeldOutScore(3 - number / 4, number / 16, 0.5))
    return made


def test_the_table_has_a_line_for_each_epoch() -> None:
    assert history().to_csv().decode() == (
        "epoch,steps,loss,accuracy,held_out_loss,held_out_accuracy,held_out_captions\n"
        "0,2,3.750000,0.062500,2.750000,0.062500,0.500000\n"
        "1,4,2.750000,0.312500,,,\n"
        "2,5,2.000000,0.500000,2.000000,0.250000,0.500000\n"
    )


def test_the_table_has_no_columns_of_what_was_not_held_out() -> None:
    made = LossHistory(1)
    made.add(StepResult(1 / 3, 1.0))
    assert made.to_csv().decode() == "epoch,steps,loss,accuracy\n0,1,0.333333,1.000000\n"


def test_a_history_is_saved_and_gone_on_with() -> None:
    made, gone_on = history(), LossHistory(2)
    buffer = io.BytesIO()
    torch.save(made.state_dict(), buffer)
    buffer.seek(0)
    gone_on.load_state_dict(torch.load(buffer, weights_only=True))
    assert gone_on.to_csv() == made.to_csv()
    assert gone_on.recent_loss() == made.recent_loss() == pytest.approx(3)
    assert gone_on.last_held_out() == made.last_held_out() == HeldOutScore(2, 0.25, 0.5)


@pytest.mark.parametrize("steps", [1, 399, 1000])
def test_the_picture_shows_a_curve_of_any_length(steps: int) -> None:
    made = LossHistory(100)
    for step in range(steps):
        made.add(StepResult(10 / (1 + step), 0.5))
    points, losses = made._curve()
    assert len(points) == len(losses) == min(steps, 400)
    assert losses.mean() == pytest.approx(np.mean([10 / (1 + step) for step in range(steps)]), rel=0.5)
    with Image.open(io.BytesIO(made.to_png())) as picture:
        picture.load()
        assert (picture.format, picture.size) == ("PNG", (700, 400))
        assert len(picture.convert("RGB").getcolors(700 * 400) or ()) > 10, "it is not blank"


def test_matplotlib_is_missed_before_the_training(monkeypatch: pytest.MonkeyPatch) -> None:
    check_drawing()
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(CheckpointError, match="cannot be drawn: .*; pip install 'patchcaption\\[export\\]'"):
        check_drawing()
