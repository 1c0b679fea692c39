"""Prompts of concepts, from the files of a bundle and a memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from export.concepts.prompt_source import ConceptPromptSource
from export.concepts.scene_graphs import parse_graph
from export.concepts.table import make_table
from runtime.bundle import HeldFile
from runtime.bundle.prompt_pieces import PromptPieces
from runtime.decoding.concept_prompts import ConceptPrompts
from runtime.errors import BundleError


@dataclass
class Bank:
    """Captions, and what rows are near which vector."""

    captions: Sequence[str]
    near: list[list[int]]

    def nearest_rows(self, vectors: Tensor, count: int) -> list[list[int]]:
        assert count == 5
        return [self.near[int(index)] for index in vectors[:, 0]]


GRAPHS = ["( dog , is , big )", "( dog , is , big )", "( dog , is , big ) , ( cat , on , mat )", "( cat )", "( cat )"]
PIECES = PromptPieces((1, 2), (3,), (4,), (((10,), (10, 9)), ((11,), (11, 9)), ((12,), (12, 9)), ((13,), (13, 9))))


def prompts_of(folder: Path, pieces: PromptPieces = PIECES, max_tokens: int = 20) -> ConceptPrompts:
    """The prompts of five captions: dog and cat, with the attribute big, and mat."""
    arrays = make_table([parse_graph(text) for text in GRAPHS], lambda names: torch.eye(len(names)))
    assert list(arrays.names) == ["dog", "cat", "mat", "big"]
    config = ConceptPromptSource(arrays, pieces, num_captions=5).write(folder)
    bundle: Any = SimpleNamespace(
        file=lambda name: HeldFile(folder / name),
        path=lambda name: folder / name,
        manifest=SimpleNamespace(decoder=SimpleNamespace(vocab_size=14)),
    )
    return ConceptPrompts(bundle, config, Bank(["-"] * 5, [[0, 1, 2, 3, 4], [2, 3, 4], [0, 3]]), max_tokens)


def test_regions_are_prompted_with_what_their_captions_agree_on(tmp_path: Path) -> None:
    prompts = prompts_of(tmp_path)
    vectors = torch.tensor([[0.0], [1.0], [2.0]])
    assert [[one.text for one in found] for found in prompts.concepts(vectors)] == [["big dog", "cat"], ["cat"], []]
    assert prompts(vectors) == [[1, 2, 13, 10, 9, 11, 4], [1, 2, 11, 4], [1, 2, 3, 4]]
    assert prompts(torch.zeros(0, 1)) == []


def test_concepts_that_do_not_fit_a_prompt_are_left_out(tmp_path: Path) -> None:
    vectors = torch.tensor([[0.0]])
    assert prompts_of(tmp_path, max_tokens=7)(vectors) == [[1, 2, 13, 10, 9, 11, 4]]
    assert prompts_of(tmp_path, max_tokens=6)(vectors) == [[1, 2, 13, 10, 4]]
    assert prompts_of(tmp_path, max_tokens=4)(vectors) == [[1, 2, 3, 4]]
    with pytest.raises(BundleError, match=r"prompt_pieces\.json: expected prompts of at most 3 tokens, got 4 without"):
        prompts_of(tmp_path, max_tokens=3)


def test_files_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    fewer = PromptPieces(PIECES.head, PIECES.nothing, PIECES.tail, PIECES.pieces[:2])
    with pytest.raises(BundleError, match=r"prompt_pieces\.json: expected pieces of 4 names, got 2"):
        prompts_of(tmp_path, fewer)
    other = PromptPieces((14,), PIECES.nothing, PIECES.tail, PIECES.pieces)
    with pytest.raises(BundleError, match=r"prompt_pieces\.json: expected ids of 14 tokens, from 0 on, got 14"):
        prompts_of(tmp_path, other)
