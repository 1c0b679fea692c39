"""A parser of scene graphs that is small and knows nothing."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

WORDS = ["<pad>", "</s>", "<unk>", "Generate", "Scene", "Graph:", "(", ")", ",", "is", "a"]
WORDS += ["dog", "cat", "man", "ball", "n't", ".", "on", "'s"]


def write_parser(folder: Path) -> None:
    """Write a T5 of a few thousand random parameters, with words for tokens."""
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder)
    sizes = {"vocab_size": len(WORDS), "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2}
    torch.manual_seed(0)
    model = T5ForConditionalGeneration(T5Config(**sizes, decoder_start_token_id=0, tie_word_embeddings=False))
    with torch.no_grad():  # so that it writes different words for different captions
        model.lm_head.weight.normal_()
        for name, weight in model.named_parameters():
            if "Attention" in name:
                weight.mul_(4)
    model.save_pretrained(folder)
