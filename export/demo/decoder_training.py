"""The demo's decoder and its training, on text alone: it learns to generate a caption from the caption's embedding.

Noise is added to the embedding, so that it resembles a region vector after the memory projection.

Shapes: B captions of a batch, M memory rows, L tokens of a caption, D width, V vocabulary.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel

from export.checkpoint import END_TOKEN
from export.demo.model_config import BACKBONE_CONFIG, DECODER_LAYERS, DECODER_WIDTH, MEMORY_TEMPERATURE
from export.demo.training_loop import ScheduledOptimizers, StepReport, TrainingLog
from export.demo.training_plan import TrainingPlan
from export.readers.clip_bpe import token_id

_IGNORED = -100
"""The target that cross entropy leaves out."""


class TrainableDecap(nn.Module):
    """DeCap's decoder: GPT-2 whose first input is the projected embedding (published-system.md, section 6).

    Its parameters have the published names.
    """

    def __init__(self, vocab_size: int) -> None:
        super().__init__()
        self.decoder = GPT2LMHeadModel(
            GPT2Config(
                vocab_size=vocab_size,
                n_positions=32,
                n_embd=DECODER_WIDTH,
                n_layer=DECODER_LAYERS,
                n_head=4,
                bos_token_id=None,
                eos_token_id=None,
            )
        )
        self.clip_project = nn.ModuleDict({"model": nn.Sequential(nn.Linear(BACKBONE_CONFIG.embed_dim, DECODER_WIDTH))})

    def forward(self, embeddings: Tensor, token_ids: Tensor) -> Tensor:
        """Return logits (B, 1 + L, V) for the embeddings (B, D) followed by the tokens (B, L)."""
        prefix = self.clip_project["model"](embeddings).unsqueeze(1)
        words = self.decoder.transformer.wte(token_ids)
        return self.decoder(inputs_embeds=torch.cat([prefix, words], dim=1)).logits


def train_decoder(
    memory: Tensor, caption_tokens: Tensor, tokenizer: Tokenizer, plan: TrainingPlan, log: TrainingLog
) -> TrainableDecap:
    """Return a decoder trained on the memory's embeddings (M, D) and the tokens (M, 1 + L) of their captions."""
    device = memory.device
    decoder = TrainableDecap(tokenizer.get_vocab_size()).to(device)
    optimizer = torch.optim.AdamW(decoder.parameters(), plan.decoder_rate, weight_decay=0.01)
    optimizers = ScheduledOptimizers([optimizer], plan.decoder_steps)
    generator = torch.Generator().manual_seed(plan.seed + 1)
    inputs = caption_tokens[:, 1:]  # without the start token: the decoder's first input is the embedding
    targets = _mask_padding(inputs, token_id(tokenizer, END_TOKEN))
    report = StepReport("decoder", plan.decoder_steps, log)
    for _ in range(plan.decoder_steps):
        rows = torch.randint(len(memory), (plan.captions_per_decoder_step,), generator=generator).to(device)
        logits = decoder(project_noisy_rows(memory, rows, generator), inputs[rows, :-1])
        loss = F.cross_entropy(logits.flatten(0, 1), targets[rows].flatten())
        optimizers.step(loss, decoder.parameters())
        correct = (logits.argmax(-1) == targets[rows]) | (targets[rows] == _IGNORED)
        report.add({"loss": loss, "whole_caption": correct.all(1).float().mean()})
    return decoder.eval()


def _mask_padding(token_ids: Tensor, end_id: int) -> Tensor:
    """Return the tokens (M, L) with what follows the first end token replaced by the ignored target."""
    is_padding = token_ids.eq(end_id).cumsum(1) > 1
    return token_ids.masked_fill(is_padding, _IGNORED)


def project_noisy_rows(memory: Tensor, rows: Tensor, generator: torch.Generator) -> Tensor:
    """Return rows of the memory (B, D) with noise added before they are projected onto the memory.

    The decoder learns from these because the runtime gives it projections of region vectors, which lie near a caption's
    embedding but not at it.
    """
    unit_memory = F.normalize(memory, dim=-1)
    noise = torch.randn(len(rows), memory.shape[1], generator=generator).to(memory)
    strength = torch.rand(len(rows), 1, generator=generator).to(memory)
    noisy = F.normalize(unit_memory[rows] + strength * F.normalize(noise, dim=-1), dim=-1)
    return F.normalize(torch.softmax(noisy @ unit_memory.T / MEMORY_TEMPERATURE, dim=-1) @ memory, dim=-1)
