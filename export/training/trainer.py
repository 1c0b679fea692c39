"""The steps of a training: forward, backward, and AdamW with a warmed up and decaying rate.

What a step does depends on nothing but the state after the one before and the seed, so that a run which goes on from a
saved state ends with the same weights, bit for bit on a CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from export.training.batches import DROPOUT, Batch, seed_of
from export.training.decoder import TrainableDecap
from export.training.objective import score_tokens
from export.training.processes import Processes
from export.training.schedule import rate_factor

Precision: TypeAlias = Literal["fp32", "bf16", "fp16"]
_AUTOCAST: Mapping[Precision, torch.dtype | None] = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Optimization:
    """How a decoder is optimized; the defaults are the published ones.

    Attributes:
        steps: of the whole training, after which the rate is 0.
        rate: the learning rate at its highest.
        warmup_steps: over which it grows from 0.
        clip_norm: the longest gradient; None for any.
        precision: of the products; weights, sums and the loss are float32.
    """

    steps: int
    rate: float = 1e-5
    warmup_steps: int = 1000
    weight_decay: float = 0.01
    label_smoothing: float = 0.1
    clip_norm: float | None = None
    precision: Precision = "fp32"


@dataclass(frozen=True)
class StepResult:
    """The mean loss of a step's tokens, and the share of them that the decoder would have chosen."""

    loss: float
    accuracy: float


class Trainer:
    """Trains a decoder step by step.

    Args:
        draw: makes this process's share of the batch of a step.
    """

    def __init__(
        self,
        model: TrainableDecap,
        draw: Callable[[int, int, int], Batch],
        optimization: Optimization,
        processes: Processes,
        seed: int,
    ) -> None:
        self.model = model.to(processes.device)
        self._draw, self._seed, self._plan, self._processes = draw, seed, optimization, processes
        self._parallel: nn.Module = DistributedDataParallel(self.model) if processes.count > 1 else self.model
        self._optimizer = torch.optim.AdamW(
            self.model.parameters(), optimization.rate, weight_decay=optimization.weight_decay
        )
        self._scaler = torch.amp.GradScaler(processes.device.type, enabled=optimization.precision == "fp16")
        self.next_step = 0

    def step(self) -> StepResult:
        """Take the next step."""
        plan, processes = self._plan, self._processes
        batch = self._draw(self.next_step, processes.rank, processes.count)
        torch.manual_seed(seed_of(self._seed, DROPOUT, self.next_step, processes.rank))
        for group in self._optimizer.param_groups:
            group["lr"] = plan.rate * rate_factor(self.next_step, plan.warmup_steps, plan.steps)
        sums = self._score(batch)
        totals = processes.sum(torch.stack([one.detach().double() for one in sums]))
        loss_sum, correct, tokens = totals.tolist()
        # The mean over the tokens of all processes: their gradients are averaged, as if each had as many.
        self._update(sums[0] * processes.count / tokens)
        self.next_step += 1
        return StepResult(loss_sum / tokens, correct / tokens)

    def _score(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Return the sum of the losses, the correct tokens and the tokens of a batch."""
        device = self._processes.device
        dtype = _AUTOCAST[self._plan.precision]
        self.model.train()
        with torch.autocast(device.type, dtype, enabled=dtype is not None):
            logits = self._parallel(batch.inputs.to(device), batch.token_ids.to(device))
        sums = score_tokens(logits, batch.targets.to(device), self._plan.label_smoothing)
        return sums.loss, sums.correct, sums.tokens

    def _update(self, loss: Tensor) -> None:
        self._optimizer.zero_grad()
        self._scaler.scale(loss).backward()
        if self._plan.clip_norm is not None:
            self._scaler.unscale_(self._optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), self._plan.clip_norm)
        self._scaler.step(self._optimizer)
        self._scaler.update()

    def state_dict(self) -> dict[str, Any]:
        """Return all that the steps to come depend on."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "scaler": self._scaler.state_dict(),
            "next_step": self.next_step,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state."""
        self.model.load_state_dict(state["model"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._scaler.load_state_dict(state["scaler"])
        self.next_step = state["next_step"]
