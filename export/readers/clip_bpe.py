"""CLIP's byte-pair vocabulary, that of the published decoders (published-system.md, section 6).

Its merges (bpe_simple_vocab_16e6.txt.gz, MIT) come inside the open_clip_torch package, which is only looked into, never
imported: `pip install --no-deps open_clip_torch` (its own dependencies would pull another torch).
"""

from __future__ import annotations

import gzip
import importlib.util
from collections.abc import Sequence
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from torch import Tensor

from export.checkpoint import END_TOKEN, CheckpointError

VOCABULARY = 49408
START_TOKEN = "<|startoftext|>"
MERGES_FILE = "bpe_simple_vocab_16e6.txt.gz"
_MERGES = VOCABULARY - 2 - 2 * 256
_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


def read_clip_bpe(merges_file: Path | None = None) -> Tokenizer:
    """Return CLIP's tokenizer from its merges; None looks for them in an installed open_clip_torch.

    Raises:
        CheckpointError: the merges are not found, or the file holds something else.
    """
    path = merges_file or find_merges()
    if path is None:
        raise CheckpointError(f"CLIP's vocabulary ({MERGES_FILE}) not found: pip install --no-deps open_clip_torch")
    try:
        lines = gzip.decompress(path.read_bytes()).decode("utf-8").split("\n")
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path}: not CLIP's merges: {error}") from None
    merges = [tuple(line.split()) for line in lines[1 : 1 + _MERGES]]
    if len(merges) != _MERGES or any(len(merge) != 2 for merge in merges):
        raise CheckpointError(f"{path}: expected {_MERGES} merges of two pieces, got {len(lines) - 1} lines")
    return _tokenizer([(first, second) for first, second in merges])


def read_tokenizer(path: Path) -> Tokenizer:
    """Read the tokenizer in a tokenizer.json.

    Raises:
        CheckpointError: the file is no tokenizer.
    """
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exception
        raise CheckpointError(f"{path}: not a tokenizer: {error}") from None


def find_merges() -> Path | None:
    """Return the merges of an installed open_clip_torch; None if there is none."""
    package = importlib.util.find_spec("open_clip")
    for folder in (package.submodule_search_locations or []) if package else []:
        path = Path(folder) / MERGES_FILE
        if path.is_file():
            return path
    return None


def placeholder_clip_bpe() -> Tokenizer:
    """Return a stand-in of as many tokens, for weights that say nothing anyway: token 17 reads "<17>"."""
    names = [f"<{number}></w>" for number in range(VOCABULARY - 2)]
    vocabulary = {name: number for number, name in enumerate([*names, START_TOKEN, END_TOKEN])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=END_TOKEN))
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens([START_TOKEN, END_TOKEN])
    return tokenizer


def _tokenizer(merges: list[tuple[str, str]]) -> Tokenizer:
    letters = _byte_letters()
    pieces = [*letters, *(f"{letter}</w>" for letter in letters), *("".join(merge) for merge in merges)]
    vocabulary = {piece: number for number, piece in enumerate([*pieces, START_TOKEN, END_TOKEN])}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, end_of_word_suffix="</w>", unk_token=END_TOKEN))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    return with_end_tokens(tokenizer)


def with_end_tokens(tokenizer: Tokenizer) -> Tokenizer:
    """Make a byte-level tokenizer put CLIP's start and end tokens around every text, adding them if it has none."""
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([START_TOKEN, END_TOKEN])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{START_TOKEN} $A {END_TOKEN}",
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in (START_TOKEN, END_TOKEN)],
    )
    return tokenizer


def pad_tokens(tokenizer: Tokenizer, captions: Sequence[str]) -> Tensor:
    """Return token ids (m, longest) with start and end, padded with the end token: text towers read the first one."""
    end = token_id(tokenizer, END_TOKEN)
    rows = [torch.tensor(encoding.ids) for encoding in tokenizer.encode_batch(list(captions))]
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=end)


def token_id(tokenizer: Tokenizer, token: str) -> int:
    """Return the id of a token that the vocabulary must have.

    Raises:
        CheckpointError: it has none.
    """
    number = tokenizer.token_to_id(token)
    if number is None:
        raise CheckpointError(f"the tokenizer has no {token}")
    return int(number)


def _byte_letters() -> list[str]:
    """Return the letter that stands for each byte, in the order of the vocabulary's first 256 pieces.

    Printable bytes come first as themselves; each of the others takes the next letter from 256 on.
    """
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    return [chr(byte) for byte in printable] + [chr(256 + number) for number in range(256 - len(printable))]
