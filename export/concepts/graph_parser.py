"""Captions -> the texts of their scene graphs, by a T5 that was trained for that (published-system.md, section 19)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from export.checkpoint import CheckpointError
from export.concepts.scene_graphs import format_graph
from export.readers.pretrained import identify, load_model, load_pretrained_tokenizer

PUBLISHED_PARSER = "lizhuang144/flan-t5-base-VG-factual-sg"
_FLAG, _WHAT = "--parser", "the scene graph parser"
_INSTRUCTION = "Generate Scene Graph: "
_MAX_TOKENS = 128
"""Of a caption with its instruction, and of a graph with the token that it begins with; longer ones are cut."""


@dataclass(frozen=True, eq=False)
class GraphParser:
    """A T5 with its tokenizer.

    Attributes:
        model: writes the graph of a caption.
        tokenizer: its own.
        identity: tells it from other parsers.
    """

    model: Any
    tokenizer: Any
    identity: str

    @torch.inference_mode()
    def parse(self, captions: Sequence[str]) -> list[str]:
        """Return the texts of the captions' graphs, with one space round each bracket and comma.

        Raises:
            CheckpointError: the device has no memory for so many captions at once.
        """
        inputs = self.tokenizer(
            [_INSTRUCTION + caption for caption in captions],
            max_length=_MAX_TOKENS,
            truncation=True,
            padding=True,
            return_tensors="pt",
        )
        try:
            written = self.model.generate(
                inputs["input_ids"].to(self.model.device),
                attention_mask=inputs["attention_mask"].to(self.model.device),
                decoder_start_token_id=self.tokenizer.pad_token_id,
                max_length=_MAX_TOKENS,
                num_beams=1,
                do_sample=False,
            )
        except torch.OutOfMemoryError:
            raise CheckpointError(
                f"--batch-size {len(captions)}: the device has no memory for so many captions at once; parse fewer"
            ) from None
        texts = self.tokenizer.batch_decode(written, skip_special_tokens=True, clean_up_tokenization_spaces=True)
        return [format_graph(text.replace(_INSTRUCTION.strip(), "")) for text in texts]


def load_graph_parser(weights: str, device: str) -> GraphParser:
    """Load a parser.

    Args:
        weights: a folder, or a repository of the Hugging Face hub.
        device: where it runs, "cpu" for example.

    Raises:
        CheckpointError: it is nowhere, or cannot be loaded.
    """
    from transformers import AutoModelForSeq2SeqLM

    model = load_model(AutoModelForSeq2SeqLM, weights, device, _FLAG, _WHAT)
    tokenizer = load_pretrained_tokenizer(weights, _FLAG)
    return GraphParser(model, tokenizer, identify(model.config.model_type, model, tokenizer.backend_tokenizer))
