"""The recorded training of the published system, taken again step by step (published-system.md, section 24)."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import parity, training_recording
from benchmarks.reference_recording import RECORDINGS
from benchmarks.training_recording import compare_training, is_training
from export.readers.clip_bpe import find_merges
from export.training import noise, objective, trainer
from export.training.decoder import DecoderSize, TrainableDecap

PATH = RECORDINGS / "decap_training_main.json"
CONTENTS = json.loads(PATH.read_text())

needs_merges = pytest.mark.skipif(find_merges() is None, reason="needs pip install --no-deps open_clip_torch")


def test_a_recording_of_a_training_is_told_from_others() -> None:
    assert is_training(CONTENTS)
    assert not is_training({"loss": [1.0], "settings": {}})


@needs_merges
@pytest.mark.slow
def test_six_steps_give_the_recorded_losses_gradients_and_weights() -> None:
    assert parity.main([str(PATH)]) == 0


def small_size(width: int, dropout: float = 0.1) -> DecoderSize:
    return DecoderSize(width, vocab_size=49408, width=8, layers=1, positions=24, dropout=dropout)


@pytest.fixture(scope="module")
def recorded() -> tuple[dict[str, Any], dict[str, Any]]:
    """A recording of a small decoder, made by the same steps: its contents, and its arrays."""
    contents = CONTENTS | {"width": 16, "training_steps": 3, "warmup_steps": 1, "gaussian_noise": 0.08, "lr": 1e-3}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training_recording, "DecoderSize", small_size)
        run = training_recording._train(contents)
    contents |= {
        "lr_used": [0, 1e-3, 5e-4],
        "loss": [result.loss for result in run.results],
        "accuracy": [result.accuracy for result in run.results],
        "grad_norm": list(run.gradient_norms),
        "state_dict_keys": [(name, list(value.shape)) for name, value in run.weights.items()],
    }
    arrays = {
        "tokens": run.batches[0].token_ids.numpy(),
        "first_inputs": run.batches[0].inputs.numpy(),
        "first_logits_97": run.first_logits[:2, :, ::97].numpy(),
        "after.wte_rows_0_320_49406": run.weights["decoder.transformer.wte.weight"][[0, 320, 49406]].numpy(),
    }
    return contents, arrays


@pytest.fixture
def small(recorded: tuple[dict[str, Any], dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The contents of the small recording, whose arrays are read in place of the published one's."""
    contents, arrays = recorded
    monkeypatch.setattr(training_recording, "DecoderSize", small_size)
    monkeypatch.setattr(np, "load", lambda _: arrays)
    return contents


def faults(contents: dict[str, Any]) -> list[str]:
    return [fault for one in compare_training(contents, PATH) for fault in one.faults]


@needs_merges
def test_the_same_steps_have_no_faults(small: dict[str, Any]) -> None:
    assert faults(small) == []


@needs_merges
@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"lr": 1.001e-3}, "weights after"),
        ({"warmup_steps": 2}, "losses"),
        ({"warmup_steps": 2}, "rates"),
        ({"weight_decay": 1.0}, "weights after"),
        ({"gaussian_noise": 0.081}, "inputs"),
        ({"dropout_in_training": [0.1, 0.0, 0.1]}, "dropout"),
        ({"texts": ["a cat", *CONTENTS["texts"][1:]]}, "token ids"),
    ],
)
def test_other_settings_are_found(small: dict[str, Any], changed: dict[str, Any], expected: str) -> None:
    assert expected in " ".join(faults(small | changed))


@needs_merges
def test_another_loss_is_found(small: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def not_smoothed(logits: torch.Tensor, targets: torch.Tensor, label_smoothing: float) -> objective.TokenSums:
        return objective.score_tokens(logits, targets, 0.9 * label_smoothing)

    monkeypatch.setattr(trainer, "score_tokens", not_smoothed)
    assert "losses" in " ".join(faults(small))


def test_noise_is_added_to_each_component_before_the_length_is_1_again() -> None:
    unit, drawn = torch.tensor([[0.6, 0.8]]), torch.tensor([[1.0, -1.0]])
    expected = torch.tensor([[0.68, 0.72]])
    torch.testing.assert_close(noise.add_noise(unit, drawn, 0.08), expected / expected.norm())


def test_dropout_is_where_the_published_decoder_has_it() -> None:
    with torch.device("meta"):
        model = TrainableDecap(replace(DecoderSize(768), layers=2))
    rates = {name: module.p for name, module in model.named_modules() if isinstance(module, torch.nn.Dropout)}
    layers = [f"decoder.transformer.h.{layer}" for layer in range(2)]
    parts = ("attn.attn_dropout", "attn.resid_dropout", "mlp.dropout")
    assert rates == {
        "decoder.transformer.drop": 0.1,
        **{f"{layer}.{part}": 0.1 for layer in layers for part in parts},
    }
