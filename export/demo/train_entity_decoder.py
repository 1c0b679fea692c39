"""Trains the demo's second decoder: `python -m export.demo.train_entity_decoder --checkpoint export/demo/checkpoint`.

It goes behind the backbone of a demo checkpoint, into whose folder its files are written: a decoder of ViECap's layout,
its tokenizer, the entities that it may be told of, and a configuration.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path

import torch

from export.demo import checkpoint_files as files
from export.demo import scenes
from export.demo.entity_decoder_training import (
    EntityDecoderPlan,
    entity_embeddings,
    prompt_about,
    train_entity_decoder,
)
from export.demo.modality_gap import measure_modality_gap
from export.demo.sentence_tokenizer import make_tokenizer
from export.demo.sentences import ENTITIES, sentence_of
from export.demo.training_log import log_to
from export.demo.training_loop import TrainingLog
from export.models.dinov2 import Dinov2Backbone
from export.readers import read_checkpoint


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description="Train the demo's second decoder.")
    parser.add_argument("--checkpoint", type=Path, required=True, help="the folder of a demo checkpoint")
    parser.add_argument("--seed", type=int, default=EntityDecoderPlan.seed)
    options = parser.parse_args()
    torch.set_num_threads(1)  # the sums of several come out a little different
    with (options.checkpoint / files.ENTITY_LOG_FILE).open("w") as log_file:
        train(EntityDecoderPlan(seed=options.seed), options.checkpoint, log_to(log_file))


def train(plan: EntityDecoderPlan, folder: Path, log: TrainingLog) -> None:
    """Train the decoder and write its files into the folder of a demo checkpoint."""
    log(plan=asdict(plan), torch=torch.__version__)
    checkpoint = read_checkpoint(str(folder / files.CONFIG_FILE))
    assert isinstance(checkpoint.backbone, Dinov2Backbone)
    assert checkpoint.memory is not None
    memory = torch.cat([rows for rows, _ in checkpoint.memory.rows()])
    prompts = [prompt_about([]), prompt_about(ENTITIES), *(prompt_about([name]) for name in ENTITIES)]
    sentences = [sentence_of(caption) for caption in scenes.all_captions()]
    tokenizer = make_tokenizer([*prompts, *sentences, " ."])  # the latter, since the published vocabulary has it
    gap = measure_modality_gap(checkpoint.backbone, memory, plan.seed)
    decoder = train_entity_decoder(memory, gap, tokenizer, plan, log)
    tokenizer.save(str(folder / files.ENTITY_TOKENIZER_FILE))
    torch.save(files.to_half_precision(decoder.state_dict()), folder / files.ENTITY_DECODER_FILE)
    files.write_entities(folder / files.ENTITIES_FILE, ENTITIES, entity_embeddings(memory), checkpoint.text_space)
    files.write_entity_config(folder / files.ENTITY_CONFIG_FILE, folder / files.CONFIG_FILE)


if __name__ == "__main__":
    main()
