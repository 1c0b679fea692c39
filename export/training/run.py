"""One training from a bank of captions to a decoder, alone or as one of several processes."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from tokenizers import Tokenizer

from export.checkpoint import CheckpointError, MemorySource
from export.readers.clip_bpe import VOCABULARY
from export.training.batches import HELD_OUT, INITIAL, CaptionBatches, seed_of
from export.training.data import CaptionTokens, TrainingData, make_data
from export.training.decoder import DecoderSize, TrainableDecap, load_decoder
from export.training.held_out import score_held_out
from export.training.losses import LossHistory
from export.training.noise import GaussianNoise, Noise, ProjectedNoise, no_noise
from export.training.plan import DecoderPlan
from export.training.processes import Processes
from export.training.state import SavedState
from export.training.trainer import StepResult, Trainer

PUBLISHED_VOCABULARY = 50257
"""The rows that published decoders have for CLIP's 49,408 tokens: GPT-2's vocabulary."""


class Monitor(Protocol):
    """Is told how a training goes."""

    def step(self, done: int, steps: int, history: LossHistory) -> None:
        """Take the number of steps that are done, of all of them."""

    def note(self, text: str) -> None:
        """Take what the user should know."""


@dataclass(frozen=True, eq=False)
class TrainedDecoder:
    """What a training ends with."""

    model: TrainableDecap
    history: LossHistory

    def state_dict(self) -> dict[str, Any]:
        """Return the weights by their published names, on the CPU, the tied ones as one."""
        state = {name: value.detach().cpu() for name, value in self.model.state_dict().items()}
        return state | {"decoder.lm_head.weight": state["decoder.transformer.wte.weight"]}


def train(
    plan: DecoderPlan,
    bank: MemorySource,
    tokenizer: Tokenizer,
    processes: Processes,
    saved: SavedState,
    monitor: Monitor,
) -> TrainedDecoder:
    """Train a decoder on a bank of captions, or go on with it; all processes end with the same weights.

    Raises:
        CheckpointError: there are fewer captions than a batch takes, or the bank or an earlier decoder cannot be used.
    """
    _be_repeatable(processes.device)
    learned, held_out = _split(plan, make_data(bank, CaptionTokens(tokenizer, plan.tokens, plan.start_token)))
    noise = _noise(plan, bank, learned, processes.device)
    batches = CaptionBatches(learned, plan.batch_size, noise, plan.seed, processes.device)
    optimization = plan.optimization(batches.per_epoch)
    trainer = Trainer(_model(plan, bank.width, tokenizer), batches.draw, optimization, processes, plan.seed)
    history = LossHistory(batches.per_epoch)
    saved.load_into(trainer=trainer, history=history)

    def state_dict() -> Mapping[str, Any]:
        return {"trainer": trainer.state_dict(), "history": history.state_dict()}

    while trainer.next_step < optimization.steps:
        history.add(_step(trainer))
        is_end = trainer.next_step % batches.per_epoch == 0 or trainer.next_step == optimization.steps
        if processes.is_first:
            if is_end and len(held_out):
                history.add_held_out(score_held_out(trainer.model, held_out, noise, plan.seed))
            monitor.step(trainer.next_step, optimization.steps, history)
            saved.save_if_due(state_dict)
    return TrainedDecoder(trainer.model.eval(), history)


def _step(trainer: Trainer) -> StepResult:
    try:
        result = trainer.step()
    except torch.OutOfMemoryError as error:
        raise CheckpointError(
            f"step {trainer.next_step}: {str(error).splitlines()[0]}: take a smaller --batch-size, or --precision bf16"
        ) from None
    if not math.isfinite(result.loss):
        raise CheckpointError(
            f"step {trainer.next_step}: the loss is {result.loss}; expected a number: lower --rate, or take more "
            "--warmup-steps or --clip-norm 1"
        )
    return result


def _split(plan: DecoderPlan, data: TrainingData) -> tuple[TrainingData, TrainingData]:
    plan.check_captions(len(data))
    return data.split(plan.held_out, seed_of(plan.seed, HELD_OUT))


def _noise(plan: DecoderPlan, bank: MemorySource, learned: TrainingData, device: torch.device) -> Noise:
    if plan.kind == "capdec":
        return GaussianNoise(plan.noise)
    if plan.through_memory:
        return ProjectedNoise(learned.embeddings.to(device), bank.temperature, bank.normalize)
    return no_noise


def _model(plan: DecoderPlan, prefix_width: int, tokenizer: Tokenizer) -> TrainableDecap:
    """Return the decoder before the first step."""
    torch.manual_seed(seed_of(plan.seed, INITIAL))
    if plan.start_from is not None:
        return earlier_decoder(plan, plan.start_from, prefix_width, tokenizer)
    tokens = tokenizer.get_vocab_size()
    vocab_size = PUBLISHED_VOCABULARY if tokens == VOCABULARY else tokens
    size = DecoderSize(prefix_width, vocab_size, plan.width, plan.layers, plan.positions, plan.dropout)
    return TrainableDecap(size)


def earlier_decoder(plan: DecoderPlan, path: Path, prefix_width: int, tokenizer: Tokenizer) -> TrainableDecap:
    """Return a decoder to train further.

    Raises:
        CheckpointError: it cannot be read, or is none of embeddings (B, prefix_width) or for the tokens that are
            learned.
    """
    model, tokens = load_decoder(path, plan.dropout), tokenizer.get_vocab_size()
    size = model.size
    if size.prefix_width != prefix_width or size.vocab_size < tokens or size.positions <= plan.tokens:
        raise CheckpointError(
            f"{path}: expected a decoder of vectors of width {prefix_width}, {tokens} tokens and more than "
            f"{plan.tokens} positions, got {size.prefix_width}, {size.vocab_size} and {size.positions}"
        )
    return model


def _be_repeatable(device: torch.device) -> None:
    """Make a GPU add up in the same order each time, where it can; CPUs do."""
    if device.type == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # which cuBLAS asks for
        torch.use_deterministic_algorithms(True, warn_only=True)
