"""Trains the demo checkpoint: `python -m export.demo.train --out export/demo/checkpoint`.

Three parts, one after another, all from a seed:

1. The backbone (a small DINOv2 with registers) and the text encoder (a small CLIP text tower, then Talk2DINO's two
   linear layers), together, in phases (`vision_training.py`).
2. The memory bank: the embeddings of all captions.
3. The decoder, on text alone, by `patchcaption train` (`train_decoder.py`).

The files have the published layout, so the readers of published checkpoints read them (`checkpoint_files.py`).
"""

from __future__ import annotations

import argparse
from dataclasses import asdict, replace
from pathlib import Path

import torch
from tokenizers import Tokenizer

from export.checkpoint import load_weights
from export.demo import checkpoint_files as files
from export.demo import scenes
from export.demo.backbone_init import init_backbone
from export.demo.model_config import BACKBONE_CONFIG
from export.demo.text_encoder import TextEncoder
from export.demo.tokenizer import train_tokenizer
from export.demo.train_decoder import train_decoder
from export.demo.training_log import copy_log, log_to
from export.demo.training_loop import TrainingLog
from export.demo.training_plan import DemoTrainingPlan
from export.demo.vision_training import train_vision
from export.models.dinov2 import Dinov2Backbone
from export.readers.clip_bpe import pad_tokens
from export.readers.weight_files import read_pickle


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description="Train the demo checkpoint.")
    parser.add_argument("--out", type=Path, required=True, help="folder for the checkpoint's files")
    parser.add_argument("--seed", type=int, default=DemoTrainingPlan.seed)
    parser.add_argument(
        "--start-from", type=Path, help="folder with the weights of an earlier run: only the last phase is trained"
    )
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    plan = DemoTrainingPlan(seed=options.seed)
    with (options.out / files.LOG_FILE).open("w") as log_file:
        log = log_to(log_file)
        if options.start_from:
            plan = replace(plan, phases=plan.phases[-1:])
            copy_log((options.start_from / files.LOG_FILE).read_text(), log)
        train(plan, options.out, options.start_from, log)


def train(plan: DemoTrainingPlan, out: Path, start_from: Path | None, log: TrainingLog) -> None:
    """Train everything and write the checkpoint's files.

    Args:
        plan: what is trained, and for how long.
        out: an existing folder for the files.
        start_from: folder with the files of an earlier run, whose weights and tokenizer are the initial ones.
        log: the training log.
    """
    torch.manual_seed(plan.seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    log(plan=asdict(plan), torch=torch.__version__, device=str(device), threads=torch.get_num_threads())
    tokenizer = _load_or_train_tokenizer(start_from)
    tokenizer.save(str(out / files.TOKENIZER_FILE))
    caption_tokens = pad_tokens(tokenizer, scenes.all_captions()).to(device)

    backbone, text_encoder = Dinov2Backbone(BACKBONE_CONFIG).to(device), TextEncoder(tokenizer).to(device)
    if start_from:
        load_weights(backbone, read_pickle(start_from / files.BACKBONE_FILE), str(start_from))
        text_encoder.load(start_from)
    else:
        init_backbone(backbone)
    for phase in plan.phases:
        train_vision(backbone, text_encoder, caption_tokens, phase, plan, log)
    torch.save(files.to_half_precision(backbone.state_dict()), out / files.BACKBONE_FILE)
    text_encoder.save(out)

    with torch.no_grad():
        memory = text_encoder(caption_tokens)
    files.write_memory_bank(out / files.MEMORY_FILE, memory)
    files.write_config(out / files.CONFIG_FILE, len(memory))
    train_decoder(out, plan, log)


def _load_or_train_tokenizer(start_from: Path | None) -> Tokenizer:
    """Return the earlier run's tokenizer, since one that is trained again may number some tokens differently."""
    if start_from is not None:
        return Tokenizer.from_file(str(start_from / files.TOKENIZER_FILE))
    return train_tokenizer(scenes.all_captions())


if __name__ == "__main__":
    main()
