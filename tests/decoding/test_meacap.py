"""A bundle of MeaCap: the demo's second decoder, told what the captions of the first one's memory agree on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from rich.console import Console
from torch import Tensor

from export import bundle_builder
from export.checkpoint import Checkpoint
from export.command_line import show_progress
from export.concepts.prompt_source import ConceptPromptSource
from export.concepts.scene_graphs import parse_graph
from export.concepts.table import make_table
from export.models.prompted_decoder import PromptedModel
from export.prompts import make_pieces
from export.readers import read_checkpoint
from runtime import Box, Captioner
from runtime.decoding.prompted import PromptedDecoder

pytestmark = pytest.mark.slow
TRIANGLE = Box(276, 174, 507, 399)


def meacap_checkpoint() -> Checkpoint:
    """Return the demo's second decoder with the first one's bank as its memory."""
    checkpoint, first = read_checkpoint("demo-viecap"), read_checkpoint("demo")
    assert first.memory is not None
    assert isinstance(checkpoint.decoder, PromptedModel)
    checkpoint.decoder.kind = "meacap"
    memory = replace(first.memory, projects=False, unit_rows=True, normalize=False)
    captions = [caption for _, texts in memory.rows() for caption in texts]
    arrays = make_table([parse_graph(_graph(caption)) for caption in captions], _one_hot)
    prompts = ConceptPromptSource(arrays, make_pieces(checkpoint.tokenizer, arrays.names), num_captions=5)
    return replace(checkpoint, memory=memory, prompts=prompts)


def _graph(caption: str) -> str:
    """Return the scene graph of a caption that names one shape, and an empty one of all others."""
    words = caption.split()
    is_one = words[0] == "a" and len(words) == 5 and "background" not in words
    return f"( {words[-1]} , is , {words[3]} )" if is_one else ""


def _one_hot(names: Sequence[str]) -> Tensor:
    return torch.eye(len(names))


@pytest.fixture(scope="module")
def meacap(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Captioner]:
    folder = tmp_path_factory.mktemp("meacap") / "bundle"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bundle_builder, "read_checkpoint", lambda *_: meacap_checkpoint())
        with show_progress(Console(quiet=True), bundle_builder.BuildOptions().steps) as progress:
            bundle_builder.build("demo-meacap", folder, progress)
    with Captioner.load(folder) as captioner:
        yield captioner


def test_prompts_name_what_the_nearest_captions_agree_on(meacap: Captioner, sample_image: Image.Image) -> None:
    decoder = meacap.pipeline.decoder
    assert isinstance(decoder, PromptedDecoder)
    vectors = meacap.vectors(meacap.encode(sample_image), [TRIANGLE])
    nearest = meacap.pipeline.projector.nearest(vectors, 5)[0]
    assert sum("triangle" in match.text for match in nearest) >= 3
    tokenizer = read_checkpoint("demo-viecap").tokenizer
    (words,) = decoder.prompts.words(vectors)
    text = tokenizer.decode(words)
    assert text.startswith("There are ")
    assert "triangle" in text


def test_its_memory_is_looked_up_but_not_projected_onto(meacap: Captioner, sample_image: Image.Image) -> None:
    features = meacap.encode(sample_image)
    vectors = meacap.vectors(features, [TRIANGLE])
    assert torch.equal(meacap.project(vectors), vectors)
    (nearest,) = meacap.describe(features, [TRIANGLE], mode="nearest")
    assert "triangle" in nearest.text
    (caption,) = meacap.describe(features, [TRIANGLE], n_best=3)
    assert caption.nearest[0].text == nearest.text
    assert len(caption.nearest) == 3
    assert caption.text.endswith(".")


def test_the_manifest_says_so(meacap: Captioner) -> None:
    manifest = meacap.manifest
    assert manifest.decoder.kind == "meacap"
    assert manifest.memory is not None
    assert not manifest.memory.projects
    assert Path(manifest.memory.captions).suffix == ".jsonl"
