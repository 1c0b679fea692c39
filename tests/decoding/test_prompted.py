"""Decoders with prompts, on the demo's: against the published algorithm on transformers' GPT-2, and by hand."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from benchmarks.eager_viecap import EagerViecap
from export.prompts import EntityPromptSource
from export.readers import read_checkpoint
from runtime import Captioner, OptionError, PatchcaptionError
from runtime.decoding.mean_beam_search import mean_beam_search
from runtime.decoding.prompted import PromptedDecoder
from runtime.output.as_json import caption_as_json

BEAMS = 3


@pytest.fixture(scope="module")
def published() -> EagerViecap:
    checkpoint = read_checkpoint("demo-viecap")
    assert isinstance(checkpoint.prompts, EntityPromptSource)
    pieces = checkpoint.prompts.pieces.pieces
    return EagerViecap.of(checkpoint, [checkpoint.tokenizer.decode(list(ids)).strip() for ids, _ in pieces])


@pytest.fixture(scope="module")
def decoder(viecap: Captioner) -> PromptedDecoder:
    found = viecap.pipeline.decoder
    assert isinstance(found, PromptedDecoder)
    return found


@pytest.fixture(scope="module")
def vectors(published: EagerViecap) -> Tensor:
    """Four vectors of noise, four near one entity, two as near to two, so that prompts differ in length."""
    generator = torch.Generator().manual_seed(3)
    embeddings = published.embeddings
    noise = torch.randn(8, embeddings.shape[1], generator=generator)
    noise = 0.5 * noise / noise.norm(dim=1, keepdim=True)
    noise[4:] += 3 * embeddings[:4]
    cosines = torch.full((2, len(embeddings)), -0.5)
    for row, pair in enumerate(([0, 6], [2, 7])):
        cosines[row, pair] = 1.0
    return torch.cat([noise, cosines @ torch.linalg.pinv(embeddings).T])


def test_prompts_differ_in_length(decoder: PromptedDecoder, vectors: Tensor) -> None:
    assert len({len(words) for words in decoder.prompts.words(vectors)}) > 1


def test_every_region_is_decoded_as_if_alone(viecap: Captioner, published: EagerViecap, vectors: Tensor) -> None:
    wanted = [published(vector[None])[0] for vector in vectors]
    assert [list(caption.ids) for caption in viecap.decode(vectors)] == wanted
    assert [list(viecap.decode(vector[None])[0].ids) for vector in vectors] == wanted


def test_published_padding_is_that_of_the_regions_of_a_call(
    viecap: Captioner, published: EagerViecap, vectors: Tensor
) -> None:
    mixed = vectors[[0, 4, 8, 9]]
    assert [list(caption.ids) for caption in viecap.decode(mixed, prompt_padding="reference")] == published(mixed)
    alone = viecap.decode(mixed[:1], prompt_padding="reference")
    assert alone == viecap.decode(mixed[:1])


def test_a_caption_is_a_sentence_that_ends_in_its_full_stop(viecap: Captioner, vectors: Tensor) -> None:
    caption = viecap.decode(vectors[4:5])[0]
    assert caption.text.endswith(".")
    assert caption.text == caption.text.strip()
    assert caption.ids[-1] in viecap.manifest.decoder.eos_token_ids
    assert sum(token in viecap.manifest.decoder.eos_token_ids for token in caption.ids) == 1


@dataclass(frozen=True)
class PlainBeam:
    ids: tuple[int, ...]
    log_prob: float
    has_ended: bool

    @property
    def mean(self) -> float:
        return self.log_prob / len(self.ids)


def plain_beams(published: EagerViecap, vector: Tensor, end_ids: Sequence[int], steps: int) -> list[PlainBeam]:
    """Return the beams by the rules of published-system.md, section 18, without a cache."""

    def log_probs(ids: Sequence[int]) -> Tensor:
        prompt = published._prompt_embeddings(vector[None])
        words = published.gpt.transformer.wte(torch.tensor([list(ids)], dtype=torch.int64))
        logits = published.gpt(inputs_embeds=torch.cat([prompt, words], dim=1)).logits[0, -1]
        return torch.log_softmax(logits, dim=-1)

    def continuations(beam: PlainBeam) -> list[PlainBeam]:
        if beam.has_ended:
            return [beam]
        best = log_probs(beam.ids).topk(BEAMS)
        pairs = zip(best.values.tolist(), best.indices.tolist(), strict=True)
        return [PlainBeam((*beam.ids, token), beam.log_prob + value, token in end_ids) for value, token in pairs]

    with torch.inference_mode():
        beams = continuations(PlainBeam((), 0.0, False))
        for _ in range(steps - 1):
            if all(beam.has_ended for beam in beams):
                break
            found = [one for beam in beams for one in continuations(beam)]
            beams = sorted(found, key=lambda beam: -beam.mean)[:BEAMS]
    return sorted(beams, key=lambda beam: -beam.mean)


def test_beams_are_ranked_by_the_mean_at_every_step(
    viecap: Captioner, decoder: PromptedDecoder, published: EagerViecap, vectors: Tensor
) -> None:
    chosen = vectors[[0, 4, 8]]
    config = viecap.manifest.decoder
    state = decoder.prompts.begin(chosen, BEAMS)
    found = mean_beam_search(decoder.beam_engine, config, state, len(chosen), BEAMS)
    for row, vector in enumerate(chosen):
        wanted = plain_beams(published, vector, config.eos_token_ids, config.max_new_tokens)
        lengths = found.lengths[row].tolist()
        ids = [tuple(found.ids[row, beam, :length].tolist()) for beam, length in enumerate(lengths)]
        assert ids == [beam.ids for beam in wanted]
        torch.testing.assert_close(found.sums[row], torch.tensor([beam.log_prob for beam in wanted]), atol=1e-3, rtol=0)
    best = viecap.decode(chosen, beams=BEAMS)
    assert [caption.ids for caption in best] == [
        tuple(found.ids[row, 0, : found.lengths[row, 0]].tolist()) for row in range(len(chosen))
    ]


def test_the_natural_score_is_the_probability_of_the_caption(
    viecap: Captioner, published: EagerViecap, vectors: Tensor
) -> None:
    for vector in vectors[[0, 4, 8]]:
        (caption,) = viecap.decode(vector[None])
        with torch.inference_mode():
            prompt = published._prompt_embeddings(vector[None])
            words = published.gpt.transformer.wte(torch.tensor([caption.ids]))
            logits = published.gpt(inputs_embeds=torch.cat([prompt, words], dim=1)).logits[0]
        log_probs = torch.log_softmax(logits[prompt.shape[1] - 1 : -1], dim=-1)
        wanted = log_probs.gather(1, torch.tensor(caption.ids)[:, None]).sum()
        assert math.log(caption.score) == pytest.approx(float(wanted), abs=1e-3)


def test_the_published_score_is_the_perplexity_of_the_text_alone(
    viecap: Captioner, published: EagerViecap, vectors: Tensor
) -> None:
    for caption in viecap.decode(vectors, score="reference"):
        ids = torch.tensor([caption.ids])  # whose text is tokenized to the same, by the demo's vocabulary
        with torch.inference_mode():
            log_probs = torch.log_softmax(published.gpt(input_ids=ids).logits[0, :-1], dim=-1)
        wanted = torch.exp(-log_probs.gather(1, ids[0, 1:, None]).mean())
        assert caption.score == pytest.approx(float(wanted), rel=1e-3)


def test_a_score_that_is_no_number_is_null_in_json(viecap: Captioner, vectors: Tensor) -> None:
    caption = viecap.decode(vectors[:1])[0]
    without = type(caption)(caption.text, math.nan, caption.ids, caption.region)
    assert caption_as_json(without)["score"] is None


def test_drawn_captions_depend_on_the_seed_and_the_vector_alone(viecap: Captioner, vectors: Tensor) -> None:
    drawn = viecap.decode(vectors, top_p=0.95, temperature=2.0, seed=5)
    assert drawn == viecap.decode(vectors, top_p=0.95, temperature=2.0, seed=5)
    alone = [viecap.decode(vector[None], top_p=0.95, temperature=2.0, seed=5)[0] for vector in vectors]
    assert [one.ids for one in drawn] == [one.ids for one in alone]
    assert drawn != viecap.decode(vectors, top_p=0.95, temperature=2.0, seed=6)


def test_a_nucleus_of_one_token_is_greedy(viecap: Captioner, vectors: Tensor) -> None:
    drawn, greedy = viecap.decode(vectors, top_p=0.0), viecap.decode(vectors)
    assert [one.ids for one in drawn] == [one.ids for one in greedy]
    assert [one.score for one in drawn] == pytest.approx([one.score for one in greedy], rel=1e-4)


def test_decap_draws_too_but_has_no_prompt_to_pad(demo: Captioner) -> None:
    vectors = torch.randn(3, demo.manifest.backbone.output_dim, generator=torch.Generator().manual_seed(0))
    assert [one.ids for one in demo.decode(vectors, top_p=0.0)] == [one.ids for one in demo.decode(vectors)]
    with pytest.raises(OptionError, match='prompt_padding="reference": the decoder of this bundle, decap'):
        demo.decode(vectors, prompt_padding="reference")
    with pytest.raises(OptionError, match='score="reference" with top_p=0.5'):
        demo.decode(vectors, score="reference", top_p=0.5)


def test_equal_regions_and_none_at_all(viecap: Captioner, vectors: Tensor) -> None:
    assert viecap.decode(vectors[:0]) == []
    twice = viecap.decode(vectors[[4, 4, 0]])
    assert twice[0] == twice[1] != twice[2]


def test_without_a_bank_nothing_is_nearest(viecap: Captioner, vectors: Tensor) -> None:
    features = viecap.encode(torch.zeros(3, 32, 32, dtype=torch.uint8))
    with pytest.raises(PatchcaptionError, match="this bundle has no memory"):
        viecap.describe(features, [], n_best=1) or viecap.pipeline.projector.nearest(vectors, 1)


def test_the_engines_of_prompts_are_reported(viecap: Captioner) -> None:
    assert list(viecap.runs_on()) == ["backbone", "mapping", "prefill", "decoder"]
