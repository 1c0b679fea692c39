"""The demo's second decoder: its sentences and prompts, what its training adds to embeddings, and its files."""

from __future__ import annotations

import math
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer

from export.demo import checkpoint_files as files
from export.demo import modality_gap, scenes, train_entity_decoder
from export.demo.entity_decoder_training import (
    EntityDecoderPlan,
    PromptedSentences,
    entity_embeddings,
    prompt_about,
)
from export.demo.modality_gap import ModalityGap, caption_kinds
from export.demo.sentence_tokenizer import make_tokenizer
from export.demo.sentences import ENTITIES, entities_in, sentence_of
from export.readers import DEMO_CONFIG
from export.readers.weight_files import read_pickle


@pytest.mark.parametrize(
    ("caption", "sentence", "entities"),
    [
        ("a large striped red triangle", "There is a large red striped triangle.", ("triangle",)),
        ("a red star and an orange ring", "There is a red star and an orange ring.", ("ring", "star")),
        ("a red star and a blue star", "There is a red star and a blue star.", ("star",)),
        ("a plain white background", "This is a plain white background.", ("background",)),
        (
            "five shapes on a plain grey background",
            "There are five shapes on a plain grey background.",
            ("background", "shape"),
        ),
    ],
)
def test_a_sentence_says_what_a_caption_says(caption: str, sentence: str, entities: tuple[str, ...]) -> None:
    assert caption in scenes.all_captions()
    assert sentence_of(caption) == sentence
    assert entities_in(caption) == entities


def test_no_two_captions_have_one_sentence() -> None:
    sentences = [sentence_of(caption) for caption in scenes.all_captions()]
    assert len(set(sentences)) == len(sentences)
    assert all(entities_in(caption) for caption in scenes.all_captions())


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    prompts = [prompt_about([]), prompt_about(ENTITIES)]
    return make_tokenizer([*prompts, *map(sentence_of, scenes.all_captions()), " ."])


def test_each_word_of_sentences_is_one_token_and_all_else_is_bytes(tokenizer: Tokenizer) -> None:
    for caption in scenes.all_captions()[::17]:
        sentence = sentence_of(caption)
        ids = tokenizer.encode(sentence).ids
        assert len(ids) == len(sentence.split()) + 1, "the full stop is one more"
        assert tokenizer.decode(ids) == sentence
    for text in ("Żółw, 3 dogs!", " red reds", ""):
        assert tokenizer.decode(tokenizer.encode(text).ids) == text
    end = tokenizer.get_vocab_size() - 1
    assert tokenizer.token_to_id("<|endoftext|>") == end
    assert None not in (tokenizer.token_to_id("."), tokenizer.token_to_id("Ġ."))
    assert tokenizer.encode("There are moon, ring in image.").tokens == [
        "There",
        "Ġare",
        "Ġmoon",
        ",",
        "Ġring",
        "Ġin",
        "Ġimage",
        ".",
    ]


def test_the_prompt_names_entities_of_the_caption_but_for_those_left_out(tokenizer: Tokenizer) -> None:
    captions = scenes.all_captions()
    row = captions.index("a red star and an orange ring")
    sentence = tokenizer.encode(sentence_of(captions[row])).ids
    drawn: Counter[str] = Counter()
    sentences = PromptedSentences(tokenizer, EntityDecoderPlan(mistaken=0.0))
    ids, targets = sentences.draw([row] * 2000)
    for of_one, wanted in zip(ids.tolist(), targets.tolist(), strict=True):
        start = next(index for index, target in enumerate(wanted) if target >= 0)
        assert of_one[start : start + len(sentence)] == wanted[start : start + len(sentence)] == sentence
        assert all(target == -100 for target in (*wanted[:start], *wanted[start + len(sentence) :]))
        drawn[tokenizer.decode(of_one[:start])] += 1
    shares = {prompt: count / 2000 for prompt, count in drawn.items()}
    assert set(shares) == {
        prompt_about(names) for names in ([], ["ring"], ["star"], ["ring", "star"], ["star", "ring"])
    }
    assert abs(shares[prompt_about([])] - 0.16) < 0.04
    assert abs(shares[prompt_about(["ring", "star"])] - 0.18) < 0.04
    again, _ = PromptedSentences(tokenizer, EntityDecoderPlan(mistaken=0.0)).draw([row] * 2000)
    assert torch.equal(ids, again)
    ids, _ = PromptedSentences(tokenizer, EntityDecoderPlan(left_out=0.0, mistaken=1.0)).draw([row] * 200)
    assert len({tokenizer.decode(of_one[:8]) for of_one in ids.tolist()}) > 40


def test_an_entitys_embedding_is_the_mean_of_the_captions_that_name_it() -> None:
    memory = torch.randn(len(scenes.all_captions()), 4, generator=torch.Generator().manual_seed(0))
    found = entity_embeddings(memory)
    rows = [index for index, caption in enumerate(scenes.all_captions()) if "moon" in caption]
    expected = F.normalize(F.normalize(memory[rows], dim=1).mean(0), dim=0)
    torch.testing.assert_close(found[ENTITIES.index("moon")], expected)


def test_embeddings_cross_the_gap_by_a_map_of_their_kind_and_noise_of_it() -> None:
    kinds = caption_kinds()
    assert kinds.bincount().tolist() == [384, 2016, 20, 100]
    rng = torch.Generator().manual_seed(0)
    embeddings = F.normalize(torch.randn(len(kinds), 6, generator=rng), dim=1)
    maps, shifts = torch.randn(4, 6, 6, generator=rng), torch.randn(4, 6, generator=rng)
    captions = torch.arange(len(kinds)).repeat(30)
    noise = torch.randn(len(captions), 6, generator=rng) * 0.1
    noise[kinds[captions] == 2] = 0
    carried = torch.einsum("rd,rde->re", embeddings[captions], maps[kinds[captions]]) + shifts[kinds[captions]]
    gap = ModalityGap(carried + noise, embeddings[captions], captions)
    rows = torch.randint(len(kinds), (4000,), generator=rng)
    off = gap.cross(embeddings[rows], rows, rng) - carried[rows]
    spread = torch.stack([off[kinds[rows] == kind].std() for kind in range(4)])
    torch.testing.assert_close(spread, torch.tensor([0.1, 0.1, 0.0, 0.1]), atol=0.02, rtol=0)


@pytest.mark.slow
def test_training_writes_files_that_belong_to_the_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few = replace(modality_gap.GAP_SCENES, scenes=4, singles=2, pairs=2)
    monkeypatch.setattr(modality_gap, "GAP_SCENES", few)
    folder = tmp_path / "checkpoint"
    shutil.copytree(DEMO_CONFIG.parent, folder)
    (folder / files.ENTITY_DECODER_FILE).unlink()
    log: list[dict[str, Any]] = []
    phases = tuple(replace(phase, steps=2) for phase in EntityDecoderPlan.phases)
    plan = EntityDecoderPlan(phases=phases, captions_per_step=8)
    train_entity_decoder.train(plan, folder, lambda **entry: log.append(entry))
    assert [entry.get("part") for entry in log] == [None, "pairing", "balancing"]
    assert math.isfinite(log[-1]["loss"])
    first = read_pickle(folder / files.ENTITY_DECODER_FILE)
    train_entity_decoder.train(plan, folder, lambda **_: None)
    second = read_pickle(folder / files.ENTITY_DECODER_FILE)
    assert all(torch.equal(first[name], second[name]) for name in first), "all of it comes from the seed"
    for name in (files.ENTITIES_FILE, files.ENTITY_CONFIG_FILE, files.ENTITY_TOKENIZER_FILE):
        assert (folder / name).read_bytes() == (DEMO_CONFIG.parent / name).read_bytes(), name
