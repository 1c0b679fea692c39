"""The proof of `patchcaption train`: a text space that never had a decoder gets one, which describes held-out scenes.

The space is the demo's with some of its axes turned round: its text tower and its backbone end in other weights.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from torch import Tensor

from benchmarks.scoring.demo_scenes import score_scenes
from export import build_engines, train_decoder
from export.demo import checkpoint_files as files
from export.demo import scenes
from export.readers import DEMO_CONFIG
from export.readers.memory_hdf5 import read_memory_bank
from export.readers.weight_files import read_pickle
from export.text_spaces import text_space
from export.training.data import CaptionTokens, make_data
from export.training.decoder import load_decoder
from export.training.held_out import score_held_out
from export.training.noise import no_noise
from runtime import Captioner
from tests.export.conftest import change_config
from tests.greedy_bundles import without_beam_search

DEMO = DEMO_CONFIG.parent
TOKENIZER = DEMO / files.TOKENIZER_FILE
TRAINING = (
    "--width 64 --layers 2 --positions 32 --tokens 8 --without-start-token --through-memory --batch-size 128 "
    "--rate 3e-3 --warmup-steps 100 --label-smoothing 0 --clip-norm 1 --dropout 0 --steps 500"
)
"""Half a minute on one core."""


def turn(file: Path, names: tuple[str, ...], signs: Tensor) -> None:
    """Multiply the first axis of some weights in a file with signs."""
    state = read_pickle(file)
    for name in names:
        state[name] = state[name] * signs.reshape(-1, *[1] * (state[name].ndim - 1)).to(state[name])
    torch.save(state, file)


def said_of_bank(decoder: Path, bank: Path) -> float:
    """Return the share of a bank's captions that a decoder says word for word."""
    memory = read_memory_bank(bank, text_space(None, 192))
    tokens = CaptionTokens(Tokenizer.from_file(str(TOKENIZER)), 8, has_start=False)
    return score_held_out(load_decoder(decoder, 0.0), make_data(memory, tokens), no_noise, 0).captions


@pytest.mark.slow
def test_a_space_without_a_decoder_gets_one_that_describes_scenes(demo_files: Path, tmp_path: Path) -> None:
    signs = torch.randint(2, (192,), generator=torch.Generator().manual_seed(0)) * 2.0 - 1
    turn(demo_files / files.BACKBONE_FILE, ("norm.weight", "norm.bias"), signs)
    turn(demo_files / files.TALK2DINO_FILE, ("hidden_layers.0.weight", "hidden_layers.0.bias"), signs)
    for name in (files.MEMORY_FILE, files.DECODER_FILE):
        (demo_files / name).unlink()
    backbone = change_config(demo_files, decap_weights=None, projection_type=None)
    (tmp_path / "captions.txt").write_text("\n".join(scenes.all_captions()))

    decoder, bundle = tmp_path / "decoder.pt", tmp_path / "bundle"
    options = {
        "talk2dino": demo_files / files.TALK2DINO_FILE,
        "text-tower": DEMO / files.TEXT_TOWER_FOLDER,
        "tower-tokenizer": TOKENIZER,
        "tokenizer": TOKENIZER,
        "backbone": backbone,
        "out": decoder,
    }
    words = [text for name, value in options.items() for text in (f"--{name}", str(value))]
    assert train_decoder.main([str(tmp_path / "captions.txt"), *words, *TRAINING.split()]) == 0
    with without_beam_search():
        assert build_engines.main([str(decoder.with_suffix(".yaml")), "--out", str(bundle)]) == 0

    with Captioner.load(bundle) as captioner:
        scores = score_scenes(captioner, scenes.HELD_OUT_SEED, 40)
    for kind in ("box", "mask", "trace"):
        named = scores[kind].named
        assert named is not None
        assert named >= 0.9, "colour and shape; these steps give 0.97 and more"
        assert scores[kind].exact >= 0.85

    demo = DEMO / files.DECODER_FILE
    assert said_of_bank(demo, DEMO / files.MEMORY_FILE) > 0.95
    assert said_of_bank(demo, decoder.with_suffix(".h5")) < 0.01, "the space is another"
