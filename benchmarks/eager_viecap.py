"""ViECap's decoding as published (published-system.md, section 18), on transformers' GPT-2: the baseline of speed.

Regions are decoded in batches of a few, as boxes of an image are; prompts are tokenized, embedded and filled up on the
right; a batch of several always takes all steps, with a KV cache, and is cut afterwards. It shares the weights with the
exporter, and no line with runtime/.

Shapes: R regions, D vector width, S soft tokens, E decoder width, K entities.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor

from export.checkpoint import Checkpoint
from export.models.mapping import MappingNetwork
from export.models.prompted_decoder import PromptedModel
from export.prompts import EntityPromptSource

STEPS = 64
GROUP = 4
"""The boxes of one image that are decoded at once."""
_PADDING = 0


@dataclass(frozen=True, eq=False)
class EagerViecap:
    """The published decoder of a checkpoint.

    Attributes:
        gpt: transformers' GPT2LMHeadModel.
        embeddings: of the entities (K, D).
        names: of the entities.
    """

    gpt: Any
    mapping: MappingNetwork
    embeddings: Tensor
    names: Sequence[str]
    tokenizer: Tokenizer
    prompts: EntityPromptSource
    end_ids: Sequence[int]

    @classmethod
    def of(cls, checkpoint: Checkpoint, names: Sequence[str]) -> EagerViecap:
        """Return the decoder of a checkpoint whose entities have these names."""
        from transformers import GPT2Config, GPT2LMHeadModel

        model, prompts = checkpoint.decoder, checkpoint.prompts
        assert isinstance(model, PromptedModel)
        assert isinstance(prompts, EntityPromptSource)
        config = model.config
        gpt = GPT2LMHeadModel(
            GPT2Config(
                n_layer=config.num_layers,
                n_head=config.num_heads,
                n_embd=config.embed_dim,
                vocab_size=config.vocab_size,
                eos_token_id=None,
                bos_token_id=None,
            )
        ).eval()
        state = gpt.state_dict()
        for name, value in model.gpt.state_dict().items():
            state[name][: len(value)] = value  # positions that no caption reaches stay as they are
        return cls(
            gpt, model.mapping, prompts.embeddings, names, checkpoint.tokenizer, prompts, checkpoint.eos_token_ids
        )

    @torch.inference_mode()
    def __call__(self, vectors: Tensor) -> list[list[int]]:
        """Return the tokens of the captions of vectors (R, D)."""
        return [ids for group in vectors.split(GROUP) for ids in self._decode_group(group)]

    def _decode_group(self, vectors: Tensor) -> list[list[int]]:
        embeddings = self._prompt_embeddings(vectors)
        tokens, past = list[Tensor](), None
        for _ in range(STEPS):
            outputs = self.gpt(inputs_embeds=embeddings, past_key_values=past, use_cache=True)
            past = outputs.past_key_values
            tokens.append(outputs.logits[:, -1].argmax(dim=-1))
            if len(vectors) == 1 and int(tokens[-1]) in self.end_ids:
                break
            embeddings = self.gpt.transformer.wte(tokens[-1])[:, None]
        rows = torch.stack(tokens, dim=1).tolist()
        ends = [next((i for i, token in enumerate(row) if token in self.end_ids), len(row)) for row in rows]
        return [row[: end + 1] for row, end in zip(rows, ends, strict=True)]

    def _prompt_embeddings(self, vectors: Tensor) -> Tensor:
        unit = vectors / vectors.norm(dim=-1, keepdim=True)
        soft = self.mapping(unit)
        ids = [self.tokenizer.encode(self._prompt(one)).ids for one in unit]
        longest = max(map(len, ids))
        padded = torch.tensor([one + [_PADDING] * (longest - len(one)) for one in ids])
        return torch.cat([soft, self.gpt.transformer.wte(padded)], dim=1)

    def _prompt(self, unit_vector: Tensor) -> str:
        probs = torch.softmax(unit_vector @ self.embeddings.T / self.prompts.temperature, dim=-1)
        top = probs.topk(self.prompts.top_k)
        pairs = zip(top.values.tolist(), top.indices.tolist(), strict=True)
        found = [self.names[index] for prob, index in pairs if prob >= self.prompts.threshold]
        return f"There are {', '.join(found)} in image." if found else "There are something in image."
