"""The training of the demo checkpoint, for a few steps: that it runs, and that the readers read what it writes."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from export.demo import scenes
from export.demo.train import BINDING, SEEING, Confusable, Plan, TextSide, make_tokenizer, train
from export.readers import read_checkpoint
from export.readers.clip_bpe import pad_tokens

SHORT = Plan(
    phases=(replace(SEEING, steps=3, scenes=4), replace(BINDING, steps=2, scenes=4)),
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
    assert [entry.get("part") for entry in log] == [None, "seeing", "binding", "decoder"]
    assert all(math.isfinite(value) for entry in log[1:] for value in entry.values() if isinstance(value, float))
    checkpoint = read_checkpoint(str(first / "config.yaml"))
    assert checkpoint.memory is not None
    assert [text for _, texts in checkpoint.memory.rows() for text in texts] == list(scenes.all_captions())

    train(replace(SHORT, phases=SHORT.phases[1:]), second, first, lambda **_: None)
    again = read_checkpoint(str(second / "config.yaml"))
    assert again.tokenizer.get_vocab() == checkpoint.tokenizer.get_vocab()
    both = zip(again.backbone.parameters(), checkpoint.backbone.parameters(), strict=True)
    moved = max(float((one - other).abs().max()) for one, other in both)
    assert 0 < moved < 0.01  # it went on from where the first had come to


def test_what_the_text_side_saves_it_loads(tmp_path: Path) -> None:
    tokenizer = make_tokenizer(scenes.all_captions())
    tokens = pad_tokens(tokenizer, scenes.all_captions()[:5])
    torch.manual_seed(0)
    one, other = TextSide(tokenizer).eval(), TextSide(tokenizer).eval()
    one.save(tmp_path)
    other.load(tmp_path)
    with torch.inference_mode():
        torch.testing.assert_close(other(tokens), one(tokens), rtol=0.02, atol=0.005)  # stored as float16


def test_every_region_is_compared_with_its_own_caption_and_its_swap() -> None:
    captions = scenes.all_captions()
    number = {caption: i for i, caption in enumerate(captions)}
    asked = ["a red circle and a blue square", "a small solid red circle", "a red circle and a blue square"]
    positives = torch.tensor([number[caption] for caption in asked])
    confusable = Confusable(torch.device("cpu"))
    shown, own = confusable.shown(positives, BINDING, 8, torch.Generator().manual_seed(0))
    assert [captions[i] for i in shown[own].tolist()] == asked
    assert number["a red square and a blue circle"] in shown.tolist()
    assert len(shown) == len(set(shown.tolist()))
