"""CLIP-S, PAC-S and their forms with references, on embeddings whose cosines are worked out by hand."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from benchmarks.scoring import image_text
from benchmarks.scoring.image_text import METRICS, PREFIX, ImageTextSample, ImageTextScorer, summarize
from benchmarks.scoring.image_text_models import ImageTextModel
from benchmarks.scoring.metric_score import MetricScore
from runtime import Box, BoxSet, ImageError, Region, Trace, WholeImage

SIZE = 16
TEXTS = {
    "right": (1.0, 0.0),
    "near": (0.6, 0.8),  # cosine 0.6 with "right"
    "across": (0.0, 1.0),
    "wrong": (-0.8, 0.6),
    "": (0.8, 0.6),
}


class FakeModel:
    """A model whose texts lie where `TEXTS` says, times 3, and its images at (3, 0); it notes what it is given."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.pictures: list[Tensor] = []

    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        self.texts += texts
        return 3 * torch.tensor([TEXTS[text.removeprefix(PREFIX)] for text in texts])

    def encode_pixels(self, pixels: Tensor) -> Tensor:
        self.pictures += pixels
        return torch.tensor([[3.0, 0.0]]).expand(len(pixels), -1)

    @property
    def model(self) -> ImageTextModel:
        return ImageTextModel(SIZE, self.encode_pixels, self.encode_texts, "fake")


def sample(
    candidate: str, *references: str, region: Region | None = None, image: Image.Image | None = None
) -> ImageTextSample:
    return ImageTextSample(
        image or Image.new("RGB", (SIZE, SIZE), "white"), region or WholeImage(), candidate, references
    )


def values(candidate: str, *references: str, region: Region | None = None) -> dict[str, Any]:
    (found,) = ImageTextScorer(FakeModel().model, FakeModel().model).add(
        [sample(candidate, *references, region=region)]
    )
    return {name: pytest.approx(value, abs=1e-6) for name, value in found.items()}


def test_a_samples_values_are_those_worked_out_by_hand() -> None:
    assert values("near", "right", "wrong") == {
        "CLIP-S": 1.5,  # 2.5 * 0.6
        "RefCLIP-S": 2 * 1.5 * 0.6 / 2.1,
        "PAC-S": 1.2,  # 2 * 0.6
        "RefPAC-S": 0.8,  # 2 * 1.2 * 0.6 / 1.8
        "RefPAC-S (text to text)": 0.6,
    }


def test_the_published_form_is_neither_clipped_nor_scaled_and_the_usual_ones_are() -> None:
    assert values("wrong", "right") == {
        "CLIP-S": 0,
        "RefCLIP-S": 0,
        "PAC-S": 0,
        "RefPAC-S": 0,
        "RefPAC-S (text to text)": -0.8,
    }
    found = values("right", "wrong", "across")  # fits the image, and no reference
    assert (found["PAC-S"], found["RefPAC-S"], found["RefPAC-S (text to text)"]) == (2, 0, 0)


def test_the_nearest_reference_counts() -> None:
    assert values("near", "across", "right", "wrong")["RefPAC-S (text to text)"] == 0.8
    assert values("near", "right")["RefPAC-S (text to text)"] == 0.6


def test_without_references_there_are_no_scores_against_them() -> None:
    assert set(values("near")) == {"CLIP-S", "PAC-S"}
    scorer = ImageTextScorer(None, FakeModel().model)
    several = scorer.add([sample("near"), sample("near", "across", "right"), sample("right"), sample("near", "right")])
    found = [value.get("RefPAC-S (text to text)") for value in several]
    assert found == [None, pytest.approx(0.8), None, pytest.approx(0.6)]


def test_an_empty_caption_scores_as_its_prefix() -> None:
    assert values("", "right")["CLIP-S"] == 2.0  # 2.5 * 0.8


def test_all_texts_stand_after_the_prefix() -> None:
    clip, pac = FakeModel(), FakeModel()
    ImageTextScorer(clip.model, pac.model).add([sample("near", "right"), sample("")])
    expected = [f"A photo depicts {text}" for text in ("near", "", "right")]
    assert clip.texts == pac.texts == expected


def test_a_metric_without_its_model_is_left_out() -> None:
    scorer = ImageTextScorer(FakeModel().model, None)
    scorer.add([sample("near", "right")])
    assert list(scorer.scores()) == ["CLIP-S", "RefCLIP-S"]
    assert ImageTextScorer(None, FakeModel().model).add([sample("near")]) == [{"PAC-S": pytest.approx(1.2)}]


@pytest.mark.parametrize(
    ("region", "is_cropped"),
    [
        (Box(2, 2, 9, 9), True),
        (Box.published(2, 2, 7, 7, frame="image"), True),
        (BoxSet([(2, 2, 9, 9)]), False),
        (Trace([(8, 8)]), False),
        (WholeImage(), False),
    ],
)
def test_boxes_alone_are_scored_cut_out_too(region: Region, is_cropped: bool) -> None:
    cropped = {"CLIP-S (cropped)", "PAC-S (cropped)"} if is_cropped else set()
    assert set(values("near", region=region)) == {"CLIP-S", "PAC-S"} | cropped


def test_models_see_the_drawn_region_as_jpeg_and_whole_images_as_they_are() -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), np.uint8))
    clip, pac = FakeModel(), FakeModel()
    ImageTextScorer(clip.model, pac.model).add(
        [sample("near", image=noise), sample("near", region=Box(2, 2, 13, 13)), sample("near", region=Trace([(8, 8)]))]
    )
    whole, boxed, traced, cut = (picture.int() for picture in clip.pictures)
    assert whole.equal(torch.from_numpy(np.array(noise)).int())
    red, green = boxed[2, 2:14, :2].float().mean(0).tolist()
    assert red > 180 > 120 > green, "the line, with JPEG's fewer colours"
    assert (boxed[7:9, 7:9] > 235).all()
    assert traced[8, 8, 0] > 235 > 180 > traced[8, 8, 1]
    assert (cut > 250).all()
    assert all(ours.equal(theirs) for ours, theirs in zip(clip.pictures, pac.pictures, strict=True))


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "LA", "CMYK", "1", "I;16"])
def test_images_of_any_mode_are_scored(mode: str) -> None:
    image = Image.new("L", (20, 30), 128).convert("I;16") if mode == "I;16" else Image.new(mode, (20, 30))
    clip = FakeModel()
    regions: list[Region] = [WholeImage(), Box(1, 1, 9, 9), BoxSet([(1, 1, 9, 9)]), Trace([(3, 3)])]
    ImageTextScorer(clip.model, None).add([sample("near", region=region, image=image) for region in regions])
    assert [tuple(picture.shape) for picture in clip.pictures] == [(SIZE, SIZE, 3)] * 5


def test_an_image_that_nobody_can_tell_is_an_error() -> None:
    image = Image.new("F", (4, 4), 1e9)
    with pytest.raises(ImageError, match="expected floats in 0..1"):
        ImageTextScorer(FakeModel().model, None).add([sample("near", image=image)])


def test_scores_are_means_and_population_deviations() -> None:
    scorer = ImageTextScorer(None, FakeModel().model)
    scorer.add([sample("near", "right")])
    scorer.add([sample("right", "near", "right"), sample("across", "near", region=Box(1, 1, 9, 9))])
    scores = scorer.scores()
    assert list(scores) == ["PAC-S", "PAC-S (cropped)", "RefPAC-S", "RefPAC-S (text to text)"]
    pac, text_to_text = scores["PAC-S"], scores["RefPAC-S (text to text)"]
    assert pac.value == pytest.approx((1.2 + 2 + 0) / 3)
    assert pac.std == pytest.approx(float(np.std([1.2, 2, 0])))
    assert text_to_text.value == pytest.approx((0.6 + 1 + 0.8) / 3)
    assert scores["PAC-S (cropped)"] == MetricScore(0, 0)


def test_a_run_that_goes_on_from_its_lines_ends_in_the_same_scores() -> None:
    samples = [sample(text, "right", region=Box(1, 1, 9, 9)) for text in ("near", "right", "across", "wrong", "")]
    whole = ImageTextScorer(FakeModel().model, FakeModel().model)
    lines = [json.dumps(value) for value in whole.add(samples)]
    resumed = ImageTextScorer(FakeModel().model, FakeModel().model)
    resumed.restore(json.loads(line) for line in lines[:2])
    resumed.add(samples[2:])
    assert resumed.scores() == whole.scores() == summarize(json.loads(line) for line in lines)
    assert tuple(whole.scores()) == METRICS


def test_nothing_scored_has_no_scores() -> None:
    assert ImageTextScorer(FakeModel().model, None).add([]) == []
    assert summarize([]) == {}


def test_samples_go_through_a_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = list(TEXTS) * 5
    whole = ImageTextScorer(FakeModel().model, None).add([sample(text, "near", text) for text in texts])
    monkeypatch.setattr(image_text, "_SAMPLES_AT_ONCE", 4)
    assert ImageTextScorer(FakeModel().model, None).add([sample(text, "near", text) for text in texts]) == whole
