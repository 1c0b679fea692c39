"""The demo's tokenizer: byte-pair encoding of CLIP's kind, trained on the demo's captions."""

from __future__ import annotations

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

from export.readers.clip_bpe import with_end_tokens


def train_tokenizer(captions: tuple[str, ...]) -> Tokenizer:
    """Train a byte-pair tokenizer of CLIP's kind on captions; its last two ids are the start and the end token.

    Merges of equal frequency come in an order that differs from run to run: no seed fixes it.
    """
    tokenizer = Tokenizer(models.BPE(unk_token=None, end_of_word_suffix="</w>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    trainer = trainers.BpeTrainer(vocab_size=320, end_of_word_suffix="</w>", show_progress=False)
    tokenizer.train_from_iterator(captions, trainer)
    return with_end_tokens(tokenizer)
