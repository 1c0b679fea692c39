"""Seeded weights at full size against what the published system computed with them (SPEC section 8).

tests/data/published_vits14_reg.npz holds a few arrays of that recording: region vectors, what the memory makes of them
and their captions; and inputs of the decoder with the 30 tokens it chose for each and their log-probabilities.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from export.readers.clip_bpe import find_merges
from runtime import Captioner
from tests.conftest import build_once

pytestmark = pytest.mark.slow
NEAR_TIE = 0.01  # of logits: rounding may rightly choose the other token, and all after it


@pytest.fixture(scope="module")
def recorded() -> dict[str, np.ndarray]:
    with np.load(Path(__file__).parent / "data" / "published_vits14_reg.npz") as file:
        return dict(file)


@pytest.fixture(scope="module")
def seeded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Captioner]:
    folder = build_once(tmp_path_factory, "seeded:dinov2_vits14_reg,size=98,memory=2000", "seeded")
    with Captioner.load(folder) as captioner:
        yield captioner


def test_the_memory_projects_as_published(seeded: Captioner, recorded: dict[str, np.ndarray]) -> None:
    projected = seeded.project(torch.from_numpy(recorded["vectors"]))
    assert np.abs(projected.numpy() - recorded["projected"]).max() < 1e-4 * np.abs(recorded["projected"]).max()


def test_the_decoder_says_the_published_tokens(seeded: Captioner, recorded: dict[str, np.ndarray]) -> None:
    captions = seeded.decode(torch.from_numpy(recorded["decoder_inputs"]))
    end = seeded.manifest.decoding.end_id
    compared = 0
    for caption, tokens, margins in zip(
        captions, recorded["decoder_tokens"].tolist(), recorded["decoder_margins"], strict=True
    ):
        until = tokens.index(end) + 1 if end in tokens else len(tokens)
        ties = np.flatnonzero(margins[:until] < NEAR_TIE)
        sure = int(ties[0]) if len(ties) else until
        assert list(caption.ids[:sure]) == tokens[:sure]
        compared += sure
    assert compared > 200


def test_scores_are_the_published_probabilities_up_to_the_end_token(
    seeded: Captioner, recorded: dict[str, np.ndarray]
) -> None:
    captions = seeded.decode(torch.from_numpy(recorded["decoder_inputs"]))
    compared = 0
    for caption, log_probabilities, tokens in zip(
        captions, recorded["decoder_log_probabilities"], recorded["decoder_tokens"].tolist(), strict=True
    ):
        count = len(caption.ids)
        if list(caption.ids) == tokens[:count]:
            assert caption.score == pytest.approx(float(np.exp(log_probabilities[:count].sum())), rel=1e-3)
            compared += 1
    assert compared > 8


@pytest.mark.skipif(find_merges() is None, reason="needs pip install --no-deps open_clip_torch")
def test_captions_are_the_published_texts(seeded: Captioner, recorded: dict[str, np.ndarray]) -> None:
    captions = seeded.decode(seeded.project(torch.from_numpy(recorded["vectors"])))
    assert [caption.text for caption in captions] == [str(text).strip() for text in recorded["captions"]]


def test_the_backbone_sees_any_image(seeded: Captioner) -> None:
    features = seeded.encode(np.random.default_rng(0).integers(0, 256, (50, 70, 3), np.uint8))
    assert features.tokens.shape == (1, 1 + 4 + 49, 384)
    assert features.tokens.isfinite().all()
    assert features.cls_attention.sum() == pytest.approx(1)
