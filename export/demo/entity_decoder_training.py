"""The demo's second decoder and its training, on text alone: it is told a caption's embedding, and nouns of it.

As ViECap is trained, in small: a mapping network makes soft tokens of the embedding, nouns of the caption, some of them
left out, make a prompt in words, and the loss is that of the sentence's own tokens. In the place of plain noise, the
embedding is carried to where region vectors lie (`modality_gap.py`).

Shapes: B captions of a batch, M memory rows, K entities, S soft tokens, L tokens of the longest prompt and sentence,
D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel

from export.demo import scenes
from export.demo.modality_gap import ModalityGap
from export.demo.model_config import (
    BACKBONE_CONFIG,
    ENTITY_DECODER_LAYERS,
    ENTITY_DECODER_WIDTH,
    MAPPING_LAYERS,
    SOFT_TOKENS,
)
from export.demo.sentences import ENTITIES, entities_in, sentence_of
from export.demo.training_loop import ScheduledOptimizers, StepReport, TrainingLog
from export.models.mapping import MappingConfig, TransformerMapping
from export.models.prompted_decoder import PUBLISHED_HEAD_WIDTH

_IGNORED = -100
"""The target that cross entropy leaves out."""
_POSITIONS = 128
"""Those of the longest prompt and of the 64 tokens that a caption may have are below."""


@dataclass(frozen=True)
class EntityPhase:
    """A stretch of the second decoder's training.

    Attributes:
        name: the name of the phase in the training log.
        rate: peak learning rate.
        shares: of a batch, those of the kinds of captions (`modality_gap.caption_kinds`), of which some have few.
        growth_steps: the steps over which the gap grows from nothing to what it is.
    """

    name: str
    steps: int
    rate: float
    shares: tuple[float, ...]
    growth_steps: int


PAIRING = EntityPhase("pairing", 4000, 2e-3, (0.3, 0.55, 0.03, 0.12), growth_steps=1200)
"""Pairs take the most steps, since colours and shapes must not be exchanged."""
BALANCING = EntityPhase("balancing", 800, 5e-4, (0.45, 0.4, 0.07, 0.08), growth_steps=1)
"""So that a region with one object is not taken for a pair."""


@dataclass(frozen=True)
class EntityDecoderPlan:
    """The settings of the second decoder's training; the defaults take about 15 minutes on one core.

    Attributes:
        seed: seed of the weights and of every random choice.
        phases: in order.
        left_out: probability that an entity of a caption is not in its prompt.
        mistaken: probability that another one is in its place, as may be detected.
    """

    seed: int = 30
    phases: tuple[EntityPhase, ...] = (PAIRING, BALANCING)
    captions_per_step: int = 128
    left_out: float = 0.4
    mistaken: float = 0.15


class TrainableViecap(nn.Module):
    """ViECap's decoder in small: a mapping network and a GPT-2, whose parameters have the published names."""

    def __init__(self, vocab_size: int) -> None:
        super().__init__()
        width = ENTITY_DECODER_WIDTH
        self.gpt = GPT2LMHeadModel(
            GPT2Config(
                vocab_size=vocab_size,
                n_positions=_POSITIONS,
                n_embd=width,
                n_layer=ENTITY_DECODER_LAYERS,
                n_head=width // PUBLISHED_HEAD_WIDTH,
                activation_function="gelu_pytorch_tanh",  # GPT-2's own, as one operation
                resid_pdrop=0.0,
                embd_pdrop=0.0,
                attn_pdrop=0.0,
                bos_token_id=None,
                eos_token_id=None,
            )
        )
        self.mapping_network = TransformerMapping(
            MappingConfig(BACKBONE_CONFIG.embed_dim, width, SOFT_TOKENS, SOFT_TOKENS, MAPPING_LAYERS)
        )
        nn.init.normal_(self.mapping_network.prefix_const)

    def forward(self, vectors: Tensor, token_ids: Tensor) -> Tensor:
        """Return logits (B, S + L, V) for the soft tokens of vectors (B, D), followed by tokens (B, L)."""
        words = self.gpt.transformer.wte(token_ids)
        return self.gpt(inputs_embeds=torch.cat([self.mapping_network(vectors), words], dim=1)).logits


def entity_embeddings(memory: Tensor) -> Tensor:
    """Return unit embeddings (K, D) of the entities: means of the unit ones (M, D) of all captions that name them."""
    unit = F.normalize(memory, dim=-1)
    named = [entities_in(caption) for caption in scenes.all_captions()]
    rows = ([index for index, names in enumerate(named) if entity in names] for entity in ENTITIES)
    return F.normalize(torch.stack([unit[of_one].mean(0) for of_one in rows]), dim=-1)


class PromptedSentences:
    """Draws a prompt for each caption, followed by the caption's sentence, as token ids."""

    def __init__(self, tokenizer: Tokenizer, plan: EntityDecoderPlan) -> None:
        self._tokenizer, self._plan, self._rng = tokenizer, plan, np.random.default_rng(plan.seed)
        captions = scenes.all_captions()
        self._entities = [entities_in(caption) for caption in captions]
        self._sentences = [self._ids(sentence_of(caption)) for caption in captions]

    def draw(self, rows: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Return token ids and targets (B, L) for the captions of those rows; prompts and padding are no targets."""
        ids, targets = [], []
        for row in rows:
            prompt, sentence = self._ids(self._prompt(row)), self._sentences[row]
            ids.append(torch.tensor([*prompt, *sentence]))
            targets.append(torch.tensor([*[_IGNORED] * len(prompt), *sentence]))
        pad = nn.utils.rnn.pad_sequence
        return pad(ids, batch_first=True), pad(targets, batch_first=True, padding_value=_IGNORED)

    def _prompt(self, row: int) -> str:
        kept = [name for name in self._entities[row] if self._rng.random() >= self._plan.left_out]
        told = [str(self._rng.choice(ENTITIES)) if self._rng.random() < self._plan.mistaken else name for name in kept]
        return prompt_about([str(name) for name in self._rng.permutation(told)])

    def _ids(self, text: str) -> list[int]:
        return self._tokenizer.encode(text).ids


class VectorsWithSentences:
    """Draws batches: vectors as of regions, each with a prompt and the sentence that describes it."""

    def __init__(self, memory: Tensor, gap: ModalityGap, tokenizer: Tokenizer, plan: EntityDecoderPlan) -> None:
        self._unit, self._gap, self._count = F.normalize(memory, dim=-1), gap, plan.captions_per_step
        self.sentences = PromptedSentences(tokenizer, plan)
        self.generator = torch.Generator().manual_seed(plan.seed + 1)

    def draw(self, shares: Sequence[float], strength: float) -> tuple[Tensor, Tensor, Tensor]:
        """Return unit vectors (B, D), token ids (B, L) and targets (B, L).

        Args:
            shares: of the batch, those of the kinds of captions.
            strength: how much of the gap is crossed, from 0 to 1.
        """
        kinds = self._gap.kinds
        odds = torch.tensor(shares)[kinds] / kinds.bincount()[kinds]
        rows = torch.multinomial(odds, self._count, replacement=True, generator=self.generator)
        crossed = self._gap.cross(self._unit[rows], rows, self.generator)
        vectors = F.normalize(torch.lerp(self._unit[rows], crossed, strength), dim=-1)
        return vectors, *self.sentences.draw(rows.tolist())


def prompt_about(entities: Sequence[str]) -> str:
    """Return the published prompt about some entities."""
    return f"There are {', '.join(entities) or 'something'} in image."


def train_entity_decoder(
    memory: Tensor, gap: ModalityGap, tokenizer: Tokenizer, plan: EntityDecoderPlan, log: TrainingLog
) -> TrainableViecap:
    """Return a decoder trained on the embeddings (M, D) of all captions."""
    torch.manual_seed(plan.seed)
    decoder = TrainableViecap(tokenizer.get_vocab_size())
    batches = VectorsWithSentences(memory, gap, tokenizer, plan)
    for phase in plan.phases:
        train_phase(decoder, batches, phase, log)
    return decoder.eval()


def train_phase(decoder: TrainableViecap, batches: VectorsWithSentences, phase: EntityPhase, log: TrainingLog) -> None:
    """Train the decoder for one phase."""
    optimizer = torch.optim.AdamW(decoder.parameters(), phase.rate, weight_decay=0.01)
    optimizers = ScheduledOptimizers([optimizer], phase.steps)
    report = StepReport(phase.name, phase.steps, log)
    for step in range(phase.steps):
        vectors, token_ids, targets = batches.draw(phase.shares, min(1.0, (step + 1) / phase.growth_steps))
        with torch.autocast("cpu", torch.bfloat16):
            logits = decoder(vectors, token_ids[:, :-1])[:, SOFT_TOKENS - 1 :].float()
        loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=_IGNORED)
        optimizers.step(loss, decoder.parameters())
        correct = (logits.argmax(-1) == targets) | (targets == _IGNORED)
        report.add({"loss": loss, "whole_sentence": correct.all(1).float().mean()})
