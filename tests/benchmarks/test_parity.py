"""Seeded weights at full size against what the published system computed with them (published-system.md, section 8).

Some of the recordings in benchmarks/recordings hold all tokens of their photographs, so all but the backbone is
compared here; of others what follows from the vectors that they hold. `python benchmarks/parity.py
--images FOLDER` compares the backbone too.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, cast

import numpy as np
import pytest
import torch

from benchmarks import eager
from benchmarks.difference import ALLOWED, NEAR_TIE, relative_difference
from benchmarks.parity import compare, compare_decoder
from benchmarks.reference_recording import RECORDINGS, Recording, tasks
from export import bundle_builder
from export.checkpoint import Checkpoint, CheckpointError
from export.models.dinov2 import Dinov2Backbone
from export.models.vit import VitBlock
from export.readers import read_checkpoint
from export.readers import recording as checkpoints
from export.readers.clip_bpe import find_merges
from export.readers.seeded import parse
from runtime import Captioner, FeatureMap
from runtime.memory.bank import MemoryBank
from runtime.options import Clean, PoolingKeywords
from tests.conftest import build_once
from tests.doubles import captioner_of, with_manifest
from tests.greedy_bundles import without_beam_search

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_merges() is None, reason="needs pip install --no-deps open_clip_torch"),
]
SMALL, LARGE = (Recording.load(RECORDINGS / f"vits14_reg_{size}.npz") for size in (98, 224))


def tokens_of(recording: Recording, captioner: Captioner) -> FeatureMap:
    features = recording.features(captioner.manifest.backbone)
    assert features is not None
    return features


def read_shortened(name: str, files: Path | None = None) -> Checkpoint:
    """Read a checkpoint with the first and the last block, of which only the last is compared with a recording."""
    checkpoint = read_checkpoint(name, files)
    assert isinstance(checkpoint.backbone, Dinov2Backbone)
    checkpoint.backbone.blocks = checkpoint.backbone.blocks[:: len(checkpoint.backbone.blocks) - 1]
    return checkpoint


@pytest.fixture(scope="module")
def seeded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Captioner]:
    """One bundle for both recordings: they differ in the size of their images, which is in their tokens."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bundle_builder, "read_checkpoint", read_shortened)
        folder = build_once(tmp_path_factory, SMALL.checkpoint, "seeded")
    with Captioner.load(folder) as captioner:
        yield captioner


@pytest.mark.parametrize("recording", [SMALL, LARGE], ids=lambda recording: recording.name)
def test_every_task_gives_what_was_recorded(seeded: Captioner, recording: Recording) -> None:
    found = list(compare(seeded, recording, tokens_of(recording, seeded)))
    assert {difference.task for difference in found} == set(recording.captions) - {"decoder"}
    assert all(difference.vectors is not None for difference in found)
    assert [fault for difference in found for fault in difference.faults] == []


def test_the_decoder_says_the_recorded_tokens(seeded: Captioner) -> None:
    (found,) = compare_decoder(seeded, SMALL)
    assert found.regions == 64
    assert found.faults == []


def test_scores_are_the_recorded_probabilities_up_to_the_end_token(seeded: Captioner) -> None:
    captions = seeded.decode(torch.from_numpy(SMALL.arrays["decoder.inputs"]))
    compared = 0
    for caption, log_probabilities, tokens in zip(
        captions, SMALL.arrays["decoder.logprobs"], SMALL.arrays["decoder.tokens"].tolist(), strict=True
    ):
        count = len(caption.ids)
        if list(caption.ids) == tokens[:count]:
            assert caption.score == pytest.approx(float(np.exp(log_probabilities[:count].sum())), rel=1e-3)
            compared += 1
    assert compared > 50


def begin(tmp_path_factory: pytest.TempPathFactory, recording: Recording) -> Captioner:
    """Open a bundle for a recording, without what it is not asked for: beam search, of which `seeded` has a graph.

    Its backbone is not run: one block of it will do, but for a ResNet.
    """
    depth = "" if "regionclip" in recording.name else ",depth=1"
    with without_beam_search():
        folder = build_once(tmp_path_factory, f"{recording.checkpoint}{depth}", recording.name)
    return Captioner.load(folder, "cpu")


def test_a_family_with_its_own_patch_size_gives_what_was_recorded(tmp_path_factory: pytest.TempPathFactory) -> None:
    recording = next(one for one in Recording.load(RECORDINGS / "dinov3_vits16_224.npz").variants())
    with begin(tmp_path_factory, recording) as captioner:
        found = list(compare(captioner, recording, tokens_of(recording, captioner)))
    assert {"boxes_attention.mem", "registers.mem", "trace_attention.mem"} < {one.task for one in found}
    assert [fault for one in found for fault in one.faults] == []


OF_BACKBONES = [
    path for path in sorted(RECORDINGS.glob("*.npz")) if "arch" in checkpoints.read_json(path.with_suffix(".json"))
]
COMPARED_ABOVE = {SMALL.name, LARGE.name, "dinov3_vits16_224"}
OWN_RULES = {"clip_vitb32_224": "unit rows, a sum", "dinotxt_vitl14_224": "cut columns"}
"""What a text space has of its own. Others follow rules of these, and are compared beside them where there is time."""
IS_ENDURANCE = os.environ.get("PATCHCAPTION_ENDURANCE") == "1"


@pytest.mark.parametrize(
    "path",
    [path for path in OF_BACKBONES if path.stem in OWN_RULES or (IS_ENDURANCE and path.stem not in COMPARED_ABOVE)],
    ids=lambda path: path.stem,
)
def test_a_recordings_projections_and_texts_follow_from_its_vectors(
    tmp_path_factory: pytest.TempPathFactory, path: Path
) -> None:
    """How each family's memory bank is used, whose variants use one in the same way."""
    variants = Recording.load(path).variants()
    *_, recording = (one for one in variants if any(key.endswith((".vec", ".proj")) for key in one.arrays))
    with begin(tmp_path_factory, recording) as captioner:
        found = list(compare(captioner, recording, None))
    assert any(one.projected is not None for one in found)
    assert [fault for one in found for fault in one.faults] == []


@pytest.mark.parametrize("path", OF_BACKBONES, ids=lambda path: path.stem)
def test_every_recording_is_of_a_backbone_that_is_known(path: Path) -> None:
    for recording in Recording.load(path).variants():
        name = checkpoints.variants(recording.settings, recording.name)[recording.tag]
        family, architecture = parse(name).family, parse(name).architecture
        widths = {array.shape[-1] for key, array in recording.arrays.items() if key.endswith((".vec", ".proj"))}
        assert widths <= {architecture.output_dim}
        assert family.space_of(architecture, parse(name).family_options).width == architecture.output_dim


def test_a_recording_that_is_none_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    with pytest.raises(CheckpointError, match=r"x\.json: not the settings of a recording: .*No such file"):
        read_checkpoint(f"recording:{path}")
    path.write_text('{"arch": "resnet", "dim": 224, "images": []}')
    with pytest.raises(CheckpointError, match=r"x\.json: not the settings of a recording: n_memory is missing"):
        read_checkpoint(f"recording:{path}")
    path.write_text('{"arch": "resnet", "dim": 224, "images": [], "n_memory": 3}')
    with pytest.raises(CheckpointError, match=r"x\.json: arch: expected a published backbone, got 'resnet'"):
        read_checkpoint(f"recording:{path}")
    kept = RECORDINGS / "siglip2_base_224.json"
    with pytest.raises(CheckpointError, match="expected a variant of mlp, pool, got 'raw'"):
        read_checkpoint(f"recording:{kept},variant=raw")


def test_a_change_of_any_rule_is_seen(seeded: Captioner) -> None:
    """The comparison itself: another alpha, another variance or another pool is no rounding."""
    by_name = {task.name: task for task in tasks(SMALL, SMALL.layout(seeded.manifest.backbone))}
    changes: dict[str, PoolingKeywords] = {
        "boxes_clean_orthogonal_projection_after": {"alpha": 0.5},
        "boxes_clean_contrastive_mask_before": {"clean_after_projection": True},
        "boxes_clean_contrastive_mask_after": {"clean_from": "attention"},
        "boxes_reencoded_avg": {"reencode": "cls"},
    }
    for name, changed in changes.items():
        task = by_name[name]
        options = cast("PoolingKeywords", {**task.options, **changed})
        difference = relative_difference(
            seeded.vectors(tokens_of(SMALL, seeded), task.regions, **options), SMALL.arrays[f"{name}.mem.vec"]
        )
        assert difference is not None
        assert difference > 50 * ALLOWED["vectors"]


def test_a_bundle_without_memory_passes_vectors_on_as_they_are(seeded: Captioner) -> None:
    without_memory = captioner_of(with_manifest(seeded.pipeline.bundle, memory=None))
    for name in ("trace", "image_avg_attention", "boxes_mean"):
        task = next(one for one in tasks(SMALL, SMALL.layout(seeded.manifest.backbone)) if one.name == name)
        described = without_memory.describe(tokens_of(SMALL, seeded), task.regions)
        texts = [caption.text for of_image in described for caption in of_image]
        assert texts == [text.strip() for text in SMALL.captions[f"{name}.nomem"]]


def test_the_backbone_sees_any_image(seeded: Captioner) -> None:
    features = seeded.encode(np.random.default_rng(0).integers(0, 256, (50, 70, 3), np.uint8))
    assert features.tokens.shape == (1, 1 + 4 + 49, 384)
    assert features.tokens.isfinite().all()
    assert features.cls_attention.sum() == pytest.approx(1)


def test_the_algorithm_written_plainly_is_the_recorded_one(seeded: Captioner) -> None:
    """The oracle that other tests and the benchmarks compare with."""
    checkpoint = read_checkpoint(SMALL.checkpoint)
    memory = seeded.pipeline.projector
    assert isinstance(memory, MemoryBank)
    bank, arrays = memory.rows.stored, {name: torch.from_numpy(array) for name, array in SMALL.arrays.items()}
    images = [
        eager.EncodedImage(cls, registers, patches.reshape(7, 7, -1), scores)
        for cls, registers, patches, scores in zip(
            *(arrays[name] for name in ("cls", "registers", "patches", "self_attn_heads")), strict=True
        )
    ]
    boxes, points = SMALL.arrays["boxes"].tolist(), SMALL.settings["traces"]
    made: dict[str, list[torch.Tensor]] = {
        name: [eager.box_vector(seen, box, *how) for seen, own in zip(images, boxes, strict=True) for box in own]
        for name, *how in (
            ("boxes_mean", "mean"),
            ("boxes_gaussian_0.1", "gaussian", 0.1),
            ("boxes_attention", "attention"),
        )
    }
    made["set_gaussian_0.5"] = [
        eager.box_set_vector(seen, own, "gaussian")
        for seen, own in zip(images, SMALL.arrays["set_boxes"].tolist(), strict=True)
    ]
    made["trace_attention"] = [
        eager.trace_vector(seen, [(point["x"], point["y"]) for point in own], with_attention=True)
        for seen, own in zip(images, points, strict=True)
    ]
    cleanings: dict[Clean, str] = {"orthogonal": "orthogonal_projection", "contrastive": "contrastive_mask"}
    for clean, name in cleanings.items():
        for after, when in ((True, "after"), (False, "before")):
            cleaned = [eager.clean_patches(seen, bank, clean, after, seen.cls) for seen in images]
            made[f"boxes_clean_{name}_{when}"] = [
                eager.box_vector(seen, box) for seen, own in zip(cleaned, boxes, strict=True) for box in own
            ]
    last_block = checkpoint.backbone.last_block
    assert isinstance(last_block, VitBlock)
    reencodings: dict[Literal["mean", "cls"], str] = {"mean": "avg", "cls": "cls"}
    for reencode, name in reencodings.items():
        made[f"boxes_reencoded_{name}"] = [
            eager.reencoded_vector(seen, last_block, corners, reencode)
            for seen, own in zip(images, SMALL.arrays["xyxy_boxes"].tolist(), strict=True)
            for corners in own
        ]
    for name, vectors in made.items():
        difference = relative_difference(torch.stack(vectors), SMALL.vectors(name))
        assert difference is not None
        assert difference < ALLOWED["vectors"], name
        if f"{name}.mem.proj" in arrays:
            projected = eager.project(bank, torch.stack(vectors))
            difference = relative_difference(projected, SMALL.arrays[f"{name}.mem.proj"])
            assert difference is not None
            assert difference < ALLOWED["projected"], name
    tokens, log_probabilities = eager.decode(checkpoint.decoder.state_dict(), arrays["decoder.inputs"][:4])
    ties = (arrays["decoder.margins"][:4] < NEAR_TIE).int().cummax(dim=1).values.bool()
    assert (~ties).sum() > 50
    assert tokens[~ties].equal(arrays["decoder.tokens"][:4].long()[~ties])
    torch.testing.assert_close(log_probabilities[~ties], arrays["decoder.logprobs"][:4][~ties], rtol=1e-3, atol=1e-4)
