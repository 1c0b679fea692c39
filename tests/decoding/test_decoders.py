"""Decoders by their kind, and token ids to text."""

from __future__ import annotations

import math
from pathlib import Path
from typing import get_args

import pytest
import torch
from tokenizers import Tokenizer, decoders, models

from runtime import BundleError, Captioner, DecodingOptions
from runtime.backends.onnxruntime_cpu import OrtBackend
from runtime.bundle import Bundle, DecoderConfig, HeldFile
from runtime.decoding import DECODERS, load_decoder
from runtime.decoding.decap import DecapDecoder
from runtime.decoding.tokenizer import CaptionTokenizer
from tests.doubles import RecordingBackend

EOS = 4


def test_every_kind_of_decoder_that_a_manifest_may_name_can_be_opened(demo_bundle: Path) -> None:
    assert set(DECODERS) == set(get_args(DecoderConfig.model_fields["kind"].annotation))
    decoder = load_decoder(Bundle(demo_bundle, verify=False), OrtBackend())
    assert isinstance(decoder, DecapDecoder)
    assert list(decoder.reports()) == ["decoder"]
    decoder.close()


def test_a_decoded_caption_is_its_text_its_probability_and_its_tokens(demo: Captioner, demo_bundle: Path) -> None:
    backend = RecordingBackend()
    decoder = DecapDecoder(Bundle(demo_bundle, verify=False), backend)
    vectors = torch.randn(3, demo.manifest.backbone.output_dim, generator=torch.Generator().manual_seed(0))
    reported: list[tuple[int, int]] = []
    decoded = decoder(vectors, DecodingOptions(), lambda done, total: reported.append((done, total)))
    sequences = decoder.greedy.decode(vectors)
    for caption, ids, log_prob in zip(decoded, sequences.ids, sequences.log_probs, strict=True):
        assert caption.ids == tuple(ids)
        assert caption.score == math.exp(log_prob)
        assert caption.text == decoder.tokenizer.text(ids)
    assert reported == [(3, 3)]
    assert [(one.text, one.score, one.ids) for one in demo.decode(vectors)] == [
        (one.text, one.score, one.ids) for one in decoded
    ]
    assert backend.opened == ["decoder"], "the graph of beam search is opened when it is first asked for"
    decoder.close()


@pytest.fixture
def tokenizer(tmp_path: Path) -> CaptionTokenizer:
    """A vocabulary of words as CLIP's has them, with a mark at their end."""
    vocabulary = {"a</w>": 0, "red</w>": 1, "tri": 2, "angle</w>": 3, "<|endoftext|>": EOS}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="<|endoftext|>"))
    made.decoder = decoders.Fuse()
    made.add_special_tokens(["<|endoftext|>"])
    made.save(str(tmp_path / "tokenizer.json"))
    return CaptionTokenizer(HeldFile(tmp_path / "tokenizer.json"), EOS)


@pytest.mark.parametrize(
    ("ids", "text"),
    [
        ([0, 1, 2, 3, EOS], "a red triangle"),
        ([0, 1, 2, 3], "a red triangle"),
        ([0, 1, EOS, 2, 3, EOS], "a red"),
        ([EOS], ""),
        ([], ""),
    ],
)
def test_ids_are_text_up_to_the_first_end_token(tokenizer: CaptionTokenizer, ids: list[int], text: str) -> None:
    given = list(ids)
    assert tokenizer.text(ids) == text
    assert ids == given


def test_a_file_that_is_no_tokenizer_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(BundleError, match="tokenizer.json: not a tokenizer: "):
        CaptionTokenizer(HeldFile(tmp_path / "tokenizer.json"), EOS)
