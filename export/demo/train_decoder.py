"""Trains the demo's decoder, on text alone: `python -m export.demo.train_decoder --checkpoint export/demo/checkpoint`.

It is trained as any other is, by `patchcaption train`, from the memory bank of a demo checkpoint, into whose folder it
is written.
"""

from __future__ import annotations

import argparse
import csv
import shlex
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from export import train_decoder as command
from export.checkpoint import CheckpointError
from export.demo import checkpoint_files as files
from export.demo.model_config import DECODER_LAYERS, DECODER_WIDTH
from export.demo.training_log import DECODER_PART, copy_log, log_to
from export.demo.training_loop import TrainingLog
from export.demo.training_plan import DemoTrainingPlan
from export.readers.talk2dino import read_talk2dino
from export.readers.weight_files import read_pickle

_EPOCHS_BETWEEN_ENTRIES = 10


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description="Train the demo's decoder.")
    parser.add_argument("--checkpoint", type=Path, required=True, help="the folder of a demo checkpoint")
    parser.add_argument("--seed", type=int, default=DemoTrainingPlan.seed)
    options = parser.parse_args()
    earlier = (options.checkpoint / files.LOG_FILE).read_text()
    with (options.checkpoint / files.LOG_FILE).open("w") as log_file:
        log = log_to(log_file)
        copy_log(earlier, log)
        train_decoder(options.checkpoint, DemoTrainingPlan(seed=options.seed), log)


def train_decoder(folder: Path, plan: DemoTrainingPlan, log: TrainingLog) -> None:
    """Train the decoder on the memory bank in a folder, and write it there.

    Raises:
        CheckpointError: the command failed; it has said why.
    """
    arguments = decoder_arguments(folder, plan)
    log(part=DECODER_PART, command=shlex.join(["patchcaption", "train", *arguments]).replace(f"{folder}/", ""))
    started = time.monotonic()
    with TemporaryDirectory() as made:
        decoder = Path(made) / files.DECODER_FILE
        if command.main([*arguments, "--out", str(decoder)]) != 0:
            raise CheckpointError(f"{folder}: its decoder could not be trained")
        _log_losses(decoder.with_suffix(".csv"), round(time.monotonic() - started), log)
        torch.save(files.to_half_precision(read_pickle(decoder)), folder / files.DECODER_FILE)


def decoder_arguments(folder: Path, plan: DemoTrainingPlan) -> list[str]:
    """Return the arguments of `patchcaption train`, but for the decoder's file."""
    options = {
        "bank": folder / files.MEMORY_FILE,
        "space": read_talk2dino(folder / files.TALK2DINO_FILE).text_space,
        "tokenizer": folder / files.TOKENIZER_FILE,
        "width": DECODER_WIDTH,
        "layers": DECODER_LAYERS,
        "positions": 32,
        "tokens": 8,  # those of the longest caption, with its end
        "steps": plan.decoder_steps,
        "batch-size": plan.captions_per_decoder_step,
        "rate": plan.decoder_rate,
        "warmup-steps": 100,
        "label-smoothing": 0,
        "clip-norm": 1,
        "seed": plan.seed,
    }
    named = [text for name, value in options.items() for text in (f"--{name}", str(value))]
    return [*named, "--without-start-token", "--through-memory"]


def _log_losses(table: Path, seconds: int, log: TrainingLog) -> None:
    """Log every tenth epoch of the command's table of losses, and the last."""
    with table.open(newline="") as file:
        epochs = list(csv.DictReader(file))
    for epoch in epochs[_EPOCHS_BETWEEN_ENTRIES - 1 : -1 : _EPOCHS_BETWEEN_ENTRIES]:
        _log_epoch(epoch, log)
    _log_epoch(epochs[-1], log, seconds=seconds)


def _log_epoch(epoch: dict[str, str], log: TrainingLog, **more: int) -> None:
    losses = {name: round(float(epoch[name]), 4) for name in ("loss", "accuracy")}
    log(part=DECODER_PART, step=int(epoch["steps"]), **more, **losses)


if __name__ == "__main__":
    main()
