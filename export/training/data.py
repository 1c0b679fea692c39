"""What a decoder is trained on: embeddings of captions, and the tokens that it learns to say of each.

Shapes: M captions, L tokens of a caption, D width of the embeddings.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import compress

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor

from export.caption_file import BadCaption, CaptionFile, fault_of
from export.checkpoint import END_TOKEN, CaptionedRows, MemorySource
from export.readers.clip_bpe import START_TOKEN, token_id
from export.training.objective import IGNORED

MAX_TOKENS = 77
"""The most tokens of a caption, start and end included: text towers read no more."""

_BATCH = 4096


@dataclass(frozen=True, eq=False)
class TrainingData:
    """Captions as a decoder learns them.

    Attributes:
        embeddings: of the text tower, as a bank stores them (M, D).
        token_ids: what the decoder says (M, L) int64; what follows the end is 0.
        targets: the same, `IGNORED` after the end.
    """

    embeddings: Tensor
    token_ids: Tensor
    targets: Tensor

    def __len__(self) -> int:
        return len(self.embeddings)

    def unit(self, rows: Tensor) -> Tensor:
        """Return the embeddings (m, D) of some rows, of length 1."""
        return F.normalize(self.embeddings[rows], dim=-1)

    def split(self, held_out: int, seed: int) -> tuple[TrainingData, TrainingData]:
        """Return the data without some captions, which are chosen by the seed, and those."""
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))
        first, last = order[: len(self) - held_out].sort().values, order[len(self) - held_out :].sort().values
        return self._take(first), self._take(last)

    def _take(self, rows: Tensor) -> TrainingData:
        return TrainingData(self.embeddings[rows], self.token_ids[rows], self.targets[rows])


@dataclass(frozen=True, eq=False)
class CaptionTokens:
    """Makes the tokens that a decoder says of captions.

    Attributes:
        length: L; longer captions are cut, and have no end then.
        has_start: whether the first of them is the start token, as published. Without it captions take a step less.
    """

    tokenizer: Tokenizer
    length: int
    has_start: bool = True

    def of(self, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Return token ids and targets (M, L) of captions."""
        token_ids = torch.zeros(len(captions), self.length, dtype=torch.int64)
        targets = torch.full_like(token_ids, IGNORED)
        for row, own in enumerate(self._encoded(captions)):
            kept = torch.tensor(own[0 if self.has_start else 1 :][: self.length])
            token_ids[row, : len(kept)] = targets[row, : len(kept)] = kept
        return token_ids, targets

    def faults(self, captions: Sequence[str]) -> Iterator[str | None]:
        """Yield for each caption why it cannot be learned; None for one that can. Long texts are not tokenized."""
        faults = [fault_of(caption) for caption in captions]
        encoded = self._encoded([caption for caption, fault in zip(captions, faults, strict=True) if fault is None])
        unknown = self._unknown()
        for fault in faults:
            yield fault or _fault_of_ids(next(encoded), unknown)

    def check(self, file: CaptionFile) -> CaptionFile:
        """Return a file's captions without those that cannot be learned, which become bad ones."""
        captions, places, bad = list[str](), list[str](), list(file.bad)
        for caption, place, fault in zip(file.captions, file.places, self.faults(file.captions), strict=True):
            if fault is None:
                captions.append(caption)
                places.append(place)
            else:
                bad.append(BadCaption(place, fault))
        return CaptionFile(tuple(captions), tuple(places), tuple(bad))

    def _unknown(self) -> set[int]:
        """Return the id that stands for all that the vocabulary has not, if there is one."""
        token = getattr(self.tokenizer.model, "unk_token", None)
        found = None if token is None else self.tokenizer.token_to_id(token)
        return set() if found is None else {found}

    def _encoded(self, captions: Sequence[str]) -> Iterator[list[int]]:
        """Yield the token ids of each caption, start and end included, whether the tokenizer adds them or not."""
        start, end = (token_id(self.tokenizer, token) for token in (START_TOKEN, END_TOKEN))
        for first in range(0, len(captions), _BATCH):
            batch = self.tokenizer.encode_batch(list(captions[first : first + _BATCH]), add_special_tokens=False)
            yield from ([start, *encoding.ids, end] for encoding in batch)


def _fault_of_ids(ids: Sequence[int], unknown: set[int]) -> str | None:
    """Return why token ids (start, own ones, end) are none of a caption."""
    own = set(ids[1:-1])
    if own <= unknown:
        return "none of it is a token of the decoder's vocabulary"
    if own & {ids[0], ids[-1]}:
        return "it holds the start or end token"
    return f"it has {len(ids)} tokens, more than {MAX_TOKENS}" if len(ids) > MAX_TOKENS else None


def without_bad_captions(bank: MemorySource, tokens: CaptionTokens) -> tuple[MemorySource, int, tuple[BadCaption, ...]]:
    """Return a bank without the rows whose captions cannot be learned, how many it has, and those rows.

    Raises:
        CheckpointError: as `make_data`.
    """
    bad, kept, start = list[BadCaption](), list[list[bool]](), 0
    for _, captions in bank.blocks():
        faults = list(tokens.faults(captions))
        bad += [BadCaption(f"row {start + row}", fault) for row, fault in enumerate(faults) if fault]
        kept.append([fault is None for fault in faults])
        start += len(captions)
    if not bad:
        return bank, start, ()
    for _ in bank.rows():  # faults of embeddings name rows of the file, not of what is left of it
        pass

    def blocks() -> Iterator[CaptionedRows]:
        for (embeddings, captions), keep in zip(bank.blocks(), kept, strict=True):
            yield embeddings[torch.tensor(keep)], list(compress(captions, keep))

    return replace(bank, blocks=blocks), start - len(bad), tuple(bad)


def make_data(bank: MemorySource, tokens: CaptionTokens) -> TrainingData:
    """Return what is learned from a bank of captions; it is held in memory, 4 bytes a number.

    Raises:
        CheckpointError: the bank cannot be read, or an embedding is not finite.
    """
    rows, captions = [], list[str]()
    for embeddings, own in bank.rows():
        rows.append(embeddings)
        captions += own
    return TrainingData(torch.cat(rows), *tokens.of(captions))
