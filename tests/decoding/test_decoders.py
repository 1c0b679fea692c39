"""Decoders by their kind, and token ids to text."""

from __future__ import annotations

import json
import math
import os
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
    decoder = load_decoder(Bundle(demo_bundle, verify=False), OrtBackend(), None)
    assert isinstance(decoder, DecapDecoder)
    assert list(decoder.reports()) == ["decoder"]
    decoder.close()


def test_a_decoded_caption_is_its_text_its_probability_and_its_tokens(demo: Captioner, demo_bundle: Path) -> None:
    backend = RecordingBackend()
    decoder = DecapDecoder(Bundle(demo_bundle, verify=False), backend, None)
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
    return CaptionTokenizer(HeldFile(tmp_path / "tokenizer.json"), (EOS,))


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
        CaptionTokenizer(HeldFile(tmp_path / "tokenizer.json"), (EOS,))


BOMB = {"type": "Sequence", "decoders": [{"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 99}] * 9}


def saved(tmp_path: Path, decoder: object, **changes: object) -> HeldFile:
    """Return a tokenizer's file with a decoder of this kind."""
    made = Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="b"))
    contents = {**json.loads(made.to_str()), "decoder": decoder, **changes}
    (tmp_path / "tokenizer.json").write_text(json.dumps(contents))
    return HeldFile(tmp_path / "tokenizer.json")


@pytest.mark.parametrize(
    ("decoder", "message"),
    [
        (BOMB, "decoder: Replace puts 'aaa"),
        ({"type": "Replace", "pattern": {"Regex": "(a|aa)+$"}, "content": ""}, "decoder: Replace puts '' in the place"),
        ({"type": "Replace", "pattern": {"String": ""}, "content": ""}, "decoder: Replace puts '' in the place"),
        ({"type": "Sequence", "decoders": [{"type": "Fuse"}] * 17}, "expected at most 16 steps, got 17"),
        (
            {"type": "Sequence", "decoders": [BOMB]},
            "decoder: expected Replace or one of BPEDecoder, .*, got 'Sequence'",
        ),
        ({"type": "CTC", "pad_token": "a", "word_delimiter_token": "a" * 99, "cleanup": True}, "got 'CTC'"),
        ({"type": ["Fuse"]}, "unhashable"),
        ("Fuse", "no attribute"),
    ],
)
def test_a_decoder_that_could_make_long_texts_is_refused(tmp_path: Path, decoder: object, message: str) -> None:
    with pytest.raises(BundleError, match=f"tokenizer.json: not a tokenizer: .*{message}"):
        CaptionTokenizer(saved(tmp_path, decoder), (EOS,))


@pytest.mark.parametrize(
    ("decoder", "text"),
    [
        (None, "a b"),
        ({"type": "Fuse"}, "ab"),
        (json.loads(decoders.ByteLevel().__getstate__()), "ab"),
        ({"type": "Sequence", "decoders": [{"type": "Replace", "pattern": {"String": "b"}, "content": "c"}]}, "ac"),
    ],
)
def test_decoders_of_published_tokenizers_are_taken(tmp_path: Path, decoder: object, text: str) -> None:
    assert CaptionTokenizer(saved(tmp_path, decoder), (EOS,)).text([0, 1]) == text


def test_patterns_that_only_split_texts_are_not_compiled(tmp_path: Path) -> None:
    splits = {"type": "Split", "pattern": {"Regex": "(" * 5000}, "behavior": "Removed", "invert": False}
    assert CaptionTokenizer(saved(tmp_path, {"type": "Fuse"}, pre_tokenizer=splits), (EOS,)).text([0]) == "a"


def test_a_vocabulary_of_long_tokens_or_a_large_file_is_refused(tmp_path: Path) -> None:
    model = {"type": "WordLevel", "vocab": {"a": 0, "b" * 1025: 1}, "unk_token": "a"}
    with pytest.raises(BundleError, match="expected tokens of at most 1024 characters, got one of 1025"):
        CaptionTokenizer(saved(tmp_path, None, model=model), (EOS,))
    os.truncate(tmp_path / "tokenizer.json", 2**40)
    with pytest.raises(BundleError, match="tokenizer.json: expected at most 33554432 bytes, got 1099511627776"):
        CaptionTokenizer(HeldFile(tmp_path / "tokenizer.json"), (EOS,))
