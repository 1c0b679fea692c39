"""Pooling, mode and beams, what a bundle cannot do, and times."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from playwright.sync_api import Route, expect

from runtime import Box, Captioner, Region, Trace, WholeImage
from runtime.regions import from_dict
from tests.serving.http.page.conftest import OpenStage
from tests.serving.http.page.stage import RING, SCENE, SQUARE, STAR, TRIANGLE, Stage

SETTINGS: list[tuple[str, str, dict[str, Any]]] = [
    ("Captions", "nearest", {"mode": "nearest"}),
    ("Beams", "3", {"beams": 3}),
    ("Boxes", "gaussian", {}),
    ("Boxes", "attention", {}),
    ("Traces", "attention", {}),
    ("Whole image", "mean", {}),
    ("Whole image", "gaussian", {}),
]
"""A control, what is chosen, and the options that it stands for."""


def drawn(stage: Stage) -> list[Region]:
    """Draw a box, a set of boxes and a trace; return all regions as the page has them."""
    stage.drag(*TRIANGLE)
    stage.tool("Box set")
    stage.drag(*SQUARE)
    stage.drag(*RING)
    stage.button("Done").click()
    stage.tool("Trace")
    stage.drag(*STAR)
    expect(stage.captions.last).to_contain_text("star")
    return regions_of(stage)


def regions_of(stage: Stage) -> list[Region]:
    rows = json.loads(stage.copied("JSON"))["regions"]
    said = ("class_name", "confidence")
    return [from_dict({key: value for key, value in row.items() if key not in said}) for row in rows]


@pytest.mark.slow
def test_each_setting_describes_all_regions_again_as_the_library_does(stage: Stage, demo: Captioner) -> None:
    drawn(stage)
    features, options = demo.encode(SCENE), dict[str, Any]()
    for label, value, meant in SETTINGS:
        options |= meant
        control = stage.page.locator(".settings").get_by_label(label, exact=True)
        with stage.page.expect_response("**/captions") as answered:
            if label == "Beams":
                control.fill(value)
                control.press("Tab")
            else:
                control.select_option(value)
        asked = json.loads(answered.value.request.post_data or "")
        assert asked["options"].items() >= options.items()
        regions = regions_of(stage)
        expected = demo.describe(features, regions, n_best=3, **options)
        expect(stage.captions).to_have_text([caption.text for caption in expected])
        scores = [f"{caption.score:.2f}" for caption in expected]
        expect(stage.page.locator(".head .score")).to_have_text(scores)
        nearest = [f"≈ {match.text}{match.similarity:.2f}" for caption in expected for match in caption.nearest]
        expect(stage.page.locator(".nearest li")).to_have_text(nearest)
    pools = [getattr(region, "pool", None) for region in regions]
    assert pools == ["gaussian", "attention", None, "attention"]


def test_beams_stay_in_their_range(stage: Stage) -> None:
    beams = stage.page.get_by_label("Beams", exact=True)
    for given, taken in (("99", "16"), ("0", "1"), ("", "1"), ("2.4", "2")):
        beams.fill(given)
        beams.press("Tab")
        expect(beams).to_have_value(taken)


def test_what_a_bundle_cannot_do_is_not_offered(open_stage: OpenStage) -> None:
    def without_abilities(route: Route) -> None:
        answer = route.fetch()
        route.fulfill(
            response=answer, json=answer.json() | {"can": dict.fromkeys(("nearest", "beams", "attention"), 0)}
        )

    stage, _ = open_stage(prepare=lambda page: page.route("**/v1/info", without_abilities))
    stage.open()
    stage.drag(*TRIANGLE)
    expect(stage.captions).to_have_count(2)
    for label in ("Captions", "Beams"):
        expect(stage.page.locator(".settings").get_by_label(label, exact=True)).to_be_hidden()
    expect(stage.button("Where cls looks")).to_have_count(0)
    expect(stage.page.locator("option[value=attention]:not(:disabled)")).to_have_count(0)
    expect(stage.page.locator(".nearest")).to_have_count(0)


def test_times_are_shown(stage: Stage) -> None:
    stage.drag(*TRIANGLE)
    expect(stage.captions).to_have_count(2)
    stage.hover((205, 530))
    rows = stage.page.locator("#facts div")
    expect(rows).to_have_text(
        [
            "Image672 × 672",
            re.compile(r"^Backbone[\d.]+ ms$"),
            re.compile(r"^Description[\d.]+ ms for 1 region$"),
            re.compile(r"^Under the cursor[\d.]+ ms$"),
        ]
    )


def test_the_bundle_is_named(stage: Stage) -> None:
    expect(stage.page.locator("#bundle")).to_have_text("demo · dinov2_vitdemo14_reg")


def test_pools_are_those_of_the_library(stage: Stage) -> None:
    offered = {
        "Boxes": lambda pool: Box(0, 0, 1, 1, pool=pool),
        "Traces": lambda pool: Trace([(0, 0)], pool=pool),
        "Whole image": WholeImage,
    }
    for label, make in offered.items():
        for pool in stage.page.get_by_label(label, exact=True).locator("option").all():
            make(pool.get_attribute("value"))  # type: ignore[no-untyped-call]
