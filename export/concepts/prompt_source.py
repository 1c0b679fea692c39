"""What MeaCap's prompts are made of: the concepts of a memory's captions (published-system.md, section 19)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from safetensors.numpy import save_file
from tokenizers import Tokenizer

from export.checkpoint import MemorySource
from export.concepts.scene_graphs import match_graphs
from export.concepts.similarity import NameEncoder
from export.concepts.table import make_table
from export.prompts import PIECES_FILE, make_pieces, most_tokens
from runtime.bundle import ConceptsConfig
from runtime.bundle.concept_arrays import ConceptArrays
from runtime.bundle.prompt_pieces import PromptPieces

MAX_NAME_TOKENS = 24
"""Of a name in a prompt; longer ones are what a parser writes that repeats itself, and are cut."""
MAX_HARD_TOKENS = 64
"""Of the words of a prompt, which has room for a name and an attribute of any length; four concepts have about 20."""
_MOST_NAMES = 8
"""Of a prompt: four concepts with an attribute each."""
_GRAPHS_FILE = "concepts.safetensors"


@dataclass(frozen=True, eq=False)
class ConceptPromptSource:
    """Prompts that name what the memory's captions near a region agree on.

    Attributes:
        arrays: the captions' graphs, and which entities are similar.
        pieces: of the names of the arrays.
        num_captions: K, the captions that are looked up for a region.
        notes: what the user should know about them.
    """

    arrays: ConceptArrays
    pieces: PromptPieces
    num_captions: int
    notes: tuple[str, ...] = ()

    @property
    def max_tokens(self) -> int:
        """The most tokens that the words of a prompt have; concepts that do not fit are left out."""
        return min(most_tokens(self.pieces, _MOST_NAMES), MAX_HARD_TOKENS)

    def write(self, folder: Path) -> ConceptsConfig:
        """Write the tables and the pieces into a bundle's folder."""
        save_file(self.arrays.tensors(), folder / _GRAPHS_FILE)
        (folder / PIECES_FILE).write_bytes(self.pieces.to_json())
        return ConceptsConfig(graphs=_GRAPHS_FILE, pieces=PIECES_FILE, num_captions=self.num_captions)


def read_concepts(
    memory: MemorySource, graphs_file: Path, encoder: NameEncoder, tokenizer: Tokenizer, num_captions: int
) -> ConceptPromptSource:
    """Return the concepts of a memory.

    Args:
        memory: has the captions; those of rows without a direction are left out, as in the bundle's bank.
        graphs_file: their scene graphs, as `patchcaption parse-captions` writes them.
        encoder: embeds the entities' names.
        tokenizer: the decoder's.
        num_captions: K, the captions that are looked up for a region.

    Raises:
        CheckpointError: a file cannot be read, or captions have no graph.
    """
    captions = [caption for _, captions in memory.rows() for caption in captions]
    arrays = make_table(match_graphs(captions, graphs_file), encoder)
    pieces = make_pieces(tokenizer, arrays.names)
    return _without_long_names(ConceptPromptSource(arrays, pieces, num_captions), tokenizer)


def _without_long_names(source: ConceptPromptSource, tokenizer: Tokenizer) -> ConceptPromptSource:
    """Cut the pieces of names that no prompt has room for, and note that."""
    comma = tuple(tokenizer.encode(",", add_special_tokens=False).ids)
    pieces = list(source.pieces.pieces)
    cut = [index for index, (ids, _) in enumerate(pieces) if len(ids) > MAX_NAME_TOKENS]
    if not cut:
        return source
    for index in cut:
        ids = pieces[index][0][:MAX_NAME_TOKENS]
        pieces[index] = (ids, ids + comma)
    example = source.arrays.names[cut[0]][:40]
    note = (
        f"{len(cut)} names of scene graphs are cut to {MAX_NAME_TOKENS} tokens in prompts, for example {example!r}..."
    )
    return replace(source, pieces=replace(source.pieces, pieces=tuple(pieces)), notes=(note,))
