"""The projector of a bundle: its memory bank, or none for a noise-trained decoder."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest
import torch

from runtime import PatchcaptionError
from runtime.bundle import Bundle
from runtime.bundle.dtypes import NUMBER_FORMATS, StoragePrecision
from runtime.memory import MemoryBank, MemoryMatch, load_bank, projector_of
from runtime.memory.projector import Identity
from tests.doubles import with_manifest

DEVICE = torch.device("cpu")


def test_a_bundle_with_a_memory_projects_through_its_bank(demo_bundle: Path) -> None:
    bundle = Bundle(demo_bundle, verify=False)
    bank = projector_of(load_bank(bundle, DEVICE))
    assert isinstance(bank, MemoryBank)
    assert bank.config == bundle.manifest.memory
    vectors = torch.randn(2, bundle.manifest.backbone.output_dim, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(bank.project(vectors).norm(dim=1), torch.ones(2))
    for matches in bank.nearest(vectors, 3):
        assert all(isinstance(match, MemoryMatch) for match in matches)
        assert [match.similarity for match in matches] == sorted((match.similarity for match in matches), reverse=True)
    assert bank.nearest(vectors[:0], 3) == []


def test_a_bundle_without_a_memory_leaves_vectors_as_they_are(demo_bundle: Path) -> None:
    projector = projector_of(load_bank(with_manifest(Bundle(demo_bundle, verify=False), memory=None), DEVICE))
    assert isinstance(projector, Identity)
    vectors = torch.ones(2, 3)
    assert projector.project(vectors) is vectors
    with pytest.raises(PatchcaptionError, match="nearest captions of a memory were asked for, but this bundle has no"):
        projector.nearest(vectors, 1)


def test_every_storage_precision_has_its_names_and_size() -> None:
    assert set(NUMBER_FORMATS) == set(get_args(StoragePrecision))
    assert {name: number_format.bytes for name, number_format in NUMBER_FORMATS.items()} == {
        "fp32": 4,
        "fp16": 2,
        "bf16": 2,
        "int8": 1,
    }
