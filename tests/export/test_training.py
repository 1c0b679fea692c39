"""The training of the demo checkpoint, for a few steps: it runs, and the readers read the files that it writes."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from export.demo import scenes
from export.demo.hard_negatives import HardNegatives
from export.demo.text_encoder import TextEncoder
from export.demo.tokenizer import train_tokenizer
from export.demo.train import train
from export.demo.training_plan import BINDING, SEEING, DemoTrainingPlan
from export.readers import read_checkpoint
from export.readers.clip_bpe import pad_tokens

SHORT = DemoTrainingPlan(
    phases=(replace(SEEING, steps=2, scenes=4), replace(BINDING, steps=1, scenes=4)),
    scenes_per_step=2,
    captions_per_step=16,
    decoder_steps=2,
    captions_per_decoder_step=8,
)


@pytest.mark.slow
def test_training_writes_a_checkpoint_that_the_readers_read(tmp_path: Path) -> None:
    log: list[dict[str, Any]] = []
    first, second = tmp_path / "first", tmp_path / "second"
    for folder in (first, second):
        folder.mkdir()
    train(SHORT, first, None, lambda **entry: log.append(entry))
    assert [entry.get("part") for entry in log] == [None, "seeing", "binding", "decoder", "decoder"]
    assert log[-2]["command"].startswith("patchcaption train --bank memory.h5 "), "the paths in it are the folder's"
    assert log[-1]["step"] == SHORT.decoder_steps
    assert all(math.isfinite(value) for entry in log[1:] for value in entry.values() if isinstance(value, float))
    checkpoint = read_checkpoint(str(first / "config.yaml"))
    assert checkpoint.memory is not None
    assert [text for _, texts in checkpoint.memory.rows() for text in texts] == list(scenes.all_captions())

    train(replace(SHORT, phases=SHORT.phases[1:]), second, first, lambda **_: None)
    resumed = read_checkpoint(str(second / "config.yaml"))
    assert resumed.tokenizer.get_vocab() == checkpoint.tokenizer.get_vocab()
    parameters = zip(resumed.backbone.parameters(), checkpoint.backbone.parameters(), strict=True)
    largest_change = max(float((after - before).abs().max()) for after, before in parameters)
    assert 0 < largest_change < 0.01  # it continued from the first run's weights


def test_the_text_encoder_loads_what_it_has_saved(tmp_path: Path) -> None:
    tokenizer = train_tokenizer(scenes.all_captions())
    token_ids = pad_tokens(tokenizer, scenes.all_captions()[:5])
    torch.manual_seed(0)
    saved, loaded = TextEncoder(tokenizer).eval(), TextEncoder(tokenizer).eval()
    saved.save(tmp_path)
    loaded.load(tmp_path)
    with torch.inference_mode():
        torch.testing.assert_close(loaded(token_ids), saved(token_ids), rtol=0.02, atol=0.005)  # stored as float16


def test_every_region_is_contrasted_with_its_own_caption_and_its_swap() -> None:
    captions = scenes.all_captions()
    index = {caption: i for i, caption in enumerate(captions)}
    own = ["a red circle and a blue square", "a small solid red circle", "a red circle and a blue square"]
    own_indices = torch.tensor([index[caption] for caption in own])
    negatives = HardNegatives(torch.device("cpu"))
    generator = torch.Generator().manual_seed(0)
    candidates, targets = negatives.sample_candidates(own_indices, 8, generator, with_swaps=True)
    assert [captions[i] for i in candidates[targets].tolist()] == own
    assert index["a red square and a blue circle"] in candidates.tolist()
    assert len(candidates) == len(set(candidates.tolist()))
