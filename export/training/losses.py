"""The losses of a training so far, as a table (CSV) and as a picture of the curve (PNG)."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from export.checkpoint import CheckpointError
from export.training.held_out import HeldOutScore
from export.training.trainer import StepResult
from runtime.system.user_dirs import cache_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_POINTS = 400
"""The most points of a curve: each is the mean of the steps around it."""
_HELD_OUT = ("loss", "accuracy", "captions")
_FOLDERS = "MPLCONFIGDIR"
"""The variable by which matplotlib is told where its folders are."""


def check_drawing() -> None:
    """Raise if the picture could not be drawn in the end.

    Raises:
        CheckpointError: matplotlib is missing or broken.
    """
    try:
        _figure()
    except ImportError as error:
        raise CheckpointError(
            f"the losses cannot be drawn: {error}; pip install 'patchcaption[export]', which has matplotlib"
        ) from None


def _figure() -> type[Figure]:
    """Return matplotlib's figures, with its list of fonts in this project's cache folder instead of two of its own."""
    folder = None if _FOLDERS in os.environ else cache_file("matplotlib")
    if folder is not None:
        os.environ[_FOLDERS] = str(folder)
    try:
        from matplotlib.figure import Figure  # which asks for its folders once
    finally:
        if folder is not None:  # it is not for the processes that this one starts
            del os.environ[_FOLDERS]
    return Figure


class LossHistory:
    """The loss and accuracy of every step, and the held-out scores by the number of steps before them."""

    def __init__(self, steps_per_epoch: int) -> None:
        self._per_epoch = steps_per_epoch
        self._steps: list[tuple[float, float]] = []
        self._held_out: dict[int, HeldOutScore] = {}

    def add(self, result: StepResult) -> None:
        """Add a step."""
        self._steps.append((result.loss, result.accuracy))

    def add_held_out(self, score: HeldOutScore) -> None:
        """Add the held-out scores after the last step."""
        self._held_out[len(self._steps)] = score

    def recent_loss(self) -> float:
        """Return the mean loss of the last steps, as many as a point of the curve stands for, and 20 at least."""
        return float(np.mean([loss for loss, _ in self._steps[-max(20, len(self._steps) // _POINTS) :]]))

    def last_held_out(self) -> HeldOutScore | None:
        """Return the latest held-out scores."""
        return self._held_out[max(self._held_out)] if self._held_out else None

    def state_dict(self) -> dict[str, Any]:
        """Return the history as it is saved."""
        held_out = {step: tuple(asdict(score).values()) for step, score in self._held_out.items()}
        return {"steps": torch.tensor(self._steps, dtype=torch.float64).reshape(-1, 2), "held_out": held_out}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a history."""
        self._steps = [(loss, accuracy) for loss, accuracy in state["steps"].tolist()]
        self._held_out = {step: HeldOutScore(*score) for step, score in state["held_out"].items()}

    def to_csv(self) -> bytes:
        """Return a line for each epoch: means over its steps, and the held-out scores after it."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        held_out = tuple(f"held_out_{name}" for name in _HELD_OUT) if self._held_out else ()
        writer.writerow(("epoch", "steps", "loss", "accuracy", *held_out))
        for epoch, start in enumerate(range(0, len(self._steps), self._per_epoch)):
            own = np.array(self._steps[start : start + self._per_epoch])
            end = start + len(own)
            means = [f"{value:.6f}" for value in own.mean(axis=0)]
            score = self._held_out.get(end)
            scores = [f"{getattr(score, name):.6f}" if score else "" for name in _HELD_OUT] if held_out else []
            writer.writerow((epoch, end, *means, *scores))
        return text.getvalue().encode()

    def to_png(self) -> bytes:
        """Return a picture of the loss over the steps, and of the held-out loss."""
        figure = _figure()(figsize=(7, 4), layout="constrained")
        axes = figure.subplots()
        steps, losses = self._curve()
        axes.plot(steps, losses, label="training")
        if self._held_out:
            points = sorted(self._held_out)
            axes.plot(points, [self._held_out[step].loss for step in points], "o-", label="held out, not smoothed")
            axes.legend()
        axes.set(xlabel="step", ylabel="loss", ylim=(0, None))
        axes.grid(alpha=0.3)
        picture = io.BytesIO()
        figure.savefig(picture, format="png")
        return picture.getvalue()

    def _curve(self) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Return means of steps and of losses, at most `_POINTS`."""
        losses = np.array([loss for loss, _ in self._steps])
        parts = min(_POINTS, len(losses))
        numbers = np.arange(1, len(losses) + 1)
        return (
            np.array([part.mean() for part in np.array_split(numbers, parts)]),
            np.array([part.mean() for part in np.array_split(losses, parts)]),
        )
