"""What tests of training share: a small decoder, learned from a few captions of the demo's grammar in a second."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from export import train_decoder
from export.demo import scenes
from export.readers import DEMO_CONFIG

DEMO = DEMO_CONFIG.parent
TOKENIZER = ("--tokenizer", str(DEMO / "tokenizer.json"))
TOWER = (
    *("--text-tower", str(DEMO / "text_tower"), "--tower-tokenizer", str(DEMO / "tokenizer.json")),
    *("--talk2dino", str(DEMO / "talk2dino.pth")),
)
_SIZE = "--width 16 --layers 1 --positions 32 --batch-size 16 --rate 1e-2 --warmup-steps 2"
_LENGTH = "--steps 30 --held-out 20 --backbone"
SIZE = tuple(_SIZE.split())
SMALL = (*TOWER, *TOKENIZER, *SIZE, *_LENGTH.split(), str(DEMO_CONFIG))
"""The options of a training that writes all that there is to write."""

Train = Callable[..., int]


def write_captions(path: Path, count: int) -> Path:
    """Write the first captions of the demo's grammar, one a line."""
    path.write_text("".join(f"{caption}\n" for caption in scenes.all_captions()[:count]), encoding="utf-8")
    return path


@pytest.fixture
def train(tmp_path: Path) -> Train:
    """A function that runs the command with more options on 60 captions; returns the exit code."""
    write_captions(tmp_path / "captions.txt", 60)

    def run(*more: object, captions: object = tmp_path / "captions.txt", out: Path = tmp_path / "decoder.pt") -> int:
        given = [] if captions is None else [captions]
        options = [*given, "--out", out, *(() if "--bank" in more else TOWER), *TOKENIZER, *SIZE, "--epochs", 1, *more]
        return train_decoder.main([str(option) for option in options])

    return run
